"""A face detector as one value: the network, from pictures to faces with five landmarks, and its licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.passes import trying

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


_PROBE = (64, 96)
_WANTED = {"boxes": (4,), "scores": (), "keypoints": (5, 2)}


def check(detector: FaceDetector, model: str) -> None:
    """Run one black picture through a detector, so that what does not fit is found before the first image.

    Raises:
        UserError: it refuses it, or gives other than `Faces`.
    """
    height, width = _PROBE
    try:
        with torch.inference_mode(), trying():
            found = detector.module(
                torch.zeros(1, 3, height, width, dtype=torch.uint8), torch.tensor([[height, width]])
            )
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"task.detector: {model} refuses a picture of {height} x {width} pixels: {error}\n"
            "  what to do: look at the model itself"
        ) from error
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in found]
    wanted = [{name: (len(one["scores"]), *rest) for name, rest in _WANTED.items()} for one in found[:1]]
    if len(found) != 1 or shapes != wanted:
        raise UserError(
            f"task.detector: {model} is expected to give for each picture boxes (K, 4), scores (K,) and "
            f"keypoints (K, 5, 2); got {shapes}"
        )
