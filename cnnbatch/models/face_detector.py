"""A face detector as one value: the network, from pictures to faces with five landmarks, and its licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Faces = Mapping[str, Tensor]
"""Of one picture, the best first: ``boxes`` [K, 4] float32 (x1, y1, x2, y2) in pixels of the input,
``scores`` [K] float32, and ``keypoints`` [K, 5, 2] float32, where (x, y) the left eye, the right eye, the
nose, and the left and the right corner of the mouth lie: left and right as the picture shows them."""


@dataclass(frozen=True)
class FaceDetector:
    """A network that finds faces and their landmarks.

    ``module`` maps pictures, uint8 RGB (N, 3, H, W), each at the top left of its canvas, and sizes (N, 2),
    the (height, width) of each one's picture, to a list of N `Faces`. Its attributes ``min_size`` (the
    shorter side of the smallest face that is looked for, in pixels), ``min_score`` and ``max_faces`` are what
    a job's fields of these names set.

    ``notes`` are sentences on what was assumed of the weights, for the person who runs the job.
    """

    module: nn.Module
    licence: str | None = None
    weights: str = ""
    library: str = ""
    notes: tuple[str, ...] = ()
