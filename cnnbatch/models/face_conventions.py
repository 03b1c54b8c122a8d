"""Conventions by name: how embedders of faces want a chip, and how their embeddings are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Template = tuple[tuple[float, float], ...]
"""Where (x, y) the left eye, the right eye, the nose, and the left and the right corner of the mouth lie in
a chip, in pixels: five pairs, left and right as the picture shows them. The centre of the pixel in the first
row and column is at (0, 0)."""

Size = tuple[int, int]
Channels = tuple[float, float, float]
"""A number for each channel."""

Alignment = Literal["similarity", "box"]
"""How a face is moved into its chip: by the similarity transform that leads its landmarks to the template, or
not aligned, by its box alone."""

BOX_POINTS: Template = (
    (0.3299, 0.3883),
    (0.6701, 0.3883),
    (0.5000, 0.5860),
    (0.3499, 0.7576),
    (0.6501, 0.7576),
)
"""Means of MTCNN's landmarks in the square around its box, as parts of its side, the box's longer one.

Measured on 600 training pictures of LFW, each as it is and mirrored.
"""


@dataclass(frozen=True)
class EmbedderConvention:
    """What a `FaceEmbedder` has beside its network; its fields are described there."""

    template: Template
    size: Size
    mean: Channels
    std: Channels
    channels: Literal["RGB", "BGR"] = "RGB"
    normalisation: Literal["none", "l2"] = "l2"
    metric: Literal["euclidean", "cosine"] = "euclidean"


ARCFACE = EmbedderConvention(
    template=(
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ),
    size=(112, 112),
    mean=(127.5, 127.5, 127.5),
    std=(127.5, 127.5, 127.5),
    metric="cosine",
)
"""insightface's ArcFace (the template is that of its ``face_align.py``)."""

FACENET = EmbedderConvention(
    template=((49.91, 64.12), (115.78, 62.74), (84.21, 92.09), (55.08, 117.59), (113.85, 116.41)),
    size=(160, 160),
    mean=(127.5, 127.5, 127.5),
    std=(128.0, 128.0, 128.0),
)
"""facenet-pytorch's.

The template are the means of MTCNN's landmarks in its crops, with the margin of 14 pixels that its evaluation
on LFW has, over 300 training pictures of LFW. The publisher crops MTCNN's box with that margin, leaves heads
as they are turned, and stretches the box to a square, by 1 / 0.754 in width on average. Here a face is turned
upright and keeps its proportions, at the scale that is nearest to those crops by least squares. What that
costs published weights has not been measured, since no package has them.
"""

DLIB_PADDING = 0.225
"""What dlib's chips have on each side beside the face, as a part of the face's side.

dlib's own code takes 0.25. Over all pairs of 1,800 pictures of LFW's 900 training people, with MTCNN's
landmarks, the decidability (the distance of the means of both kinds of pairs by their pooled deviation,
Daugman 2000) is 4.46 with 0.175, 4.54 with 0.2, 4.58 with 0.225, and 4.57 with 0.25.
"""

DLIB_POINTS: Template = (
    (0.2321, 0.2138),
    (0.7817, 0.2137),
    (0.5063, 0.5379),
    (0.2606, 0.8104),
    (0.7480, 0.8107),
)
"""Means of MTCNN's landmarks in the square that dlib's chips show without padding, as parts of its side.

Measured on 891 training pictures of LFW in which dlib's detector finds one face: its predictor of 5 points
(CC0) says where a chip lies, MTCNN where its landmarks are in it.
"""

DLIB_SIDE = 150


def dlib_template(padding: float = DLIB_PADDING) -> Template:
    """Return where MTCNN's landmarks lie in dlib's chips, 150 x 150 pixels.

    dlib counts from the corner of a chip's first pixel, and this package from its centre.
    """
    scale = DLIB_SIDE / (1 + 2 * padding)
    return tuple(((padding + x) * scale - 0.5, (padding + y) * scale - 0.5) for x, y in DLIB_POINTS)


DLIB = EmbedderConvention(
    template=dlib_template(),
    size=(DLIB_SIDE, DLIB_SIDE),
    mean=(122.782, 117.001, 104.298),
    std=(256.0, 256.0, 256.0),
    normalisation="none",
)
"""That of dlib's face recognition network."""

CONVENTIONS: Mapping[str, EmbedderConvention] = {"arcface": ARCFACE, "dlib": DLIB, "facenet": FACENET}
"""By the names that a job has for them."""
