"""Where published embedders want the five landmarks of a face, in pixels of their chips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnbatch.models.face_embedder import Template

Size = tuple[int, int]


@dataclass(frozen=True)
class ChipTemplate:
    """Where the five landmarks lie, in pixels, in chips of a ``size`` (height, width)."""

    points: Template
    size: Size


ARCFACE = ChipTemplate(
    (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ),
    (112, 112),
)
"""What insightface trains ArcFace on (its ``face_align.py``)."""

FACENET = ChipTemplate(
    ((49.91, 64.12), (115.78, 62.74), (84.21, 92.09), (55.08, 117.59), (113.85, 116.41)), (160, 160)
)
"""Means of MTCNN's landmarks in facenet-pytorch's crops with the margin 14 of its evaluation on LFW.

Measured on 300 training pictures of LFW. The publisher crops MTCNN's box with that margin, leaves heads as
they are turned, and stretches the box to a square, by 1 / 0.754 in width on average. Here a face is turned
upright and keeps its proportions, at the scale that is nearest to those crops by least squares. What that
costs published weights has not been measured, since no package has them.
"""

DLIB_PADDING = 0.2
"""What dlib's chips have on each side beside the face, as a part of the face's side.

dlib's own code takes 0.25. With MTCNN's landmarks 0.2 separated the people of LFW's training pictures better.
"""

DLIB_POINTS: Template = (
    (0.2364, 0.2175),
    (0.7769, 0.2178),
    (0.5086, 0.5328),
    (0.2625, 0.8016),
    (0.7445, 0.8024),
)
"""Means of MTCNN's landmarks in the square that dlib's chips show without padding, as parts of its side.

Measured on 300 training pictures of LFW: dlib's predictor of 5 points (CC0) says where a chip lies, MTCNN
where its landmarks are in it.
"""

DLIB_SIDE = 150


def dlib_template(padding: float = DLIB_PADDING) -> ChipTemplate:
    """Return where MTCNN's landmarks lie in dlib's chips, 150 x 150 pixels.

    dlib counts from the corner of a chip's first pixel, and this package from its centre.
    """
    scale = DLIB_SIDE / (1 + 2 * padding)
    points = tuple(((padding + x) * scale - 0.5, (padding + y) * scale - 0.5) for x, y in DLIB_POINTS)
    return ChipTemplate(points, (DLIB_SIDE, DLIB_SIDE))


TEMPLATES = {"arcface": ARCFACE, "dlib": dlib_template(), "facenet": FACENET}
"""By the names that a job has for them."""
