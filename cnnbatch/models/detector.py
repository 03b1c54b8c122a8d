"""A detector as one value: network, resizing, class names and the ids that their source has for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.passes import trying
from cnnbatch.models.resizing import Resizing

if TYPE_CHECKING:
    from cnnbatch.types import Head, Runtime

Detections = Mapping[str, Tensor]
"""Of one picture, the best first: ``boxes`` [K, 4] float32 (x1, y1, x2, y2) in pixels of the input,
``scores`` [K] float32, ``labels`` [K] int64; of a network for masks also ``masks`` [K, 1, M, M] float32, the
probability that a part of the box is of the object; of a pose network ``keypoints`` [K, P, 3], (x, y,
visibility)."""


PROBE = (64, 96)
"""The (height, width) of the picture that shows whether a detector runs, where it takes any."""


@dataclass(frozen=True)
class Detector:
    """A network that gives boxes.

    ``module`` maps floats (N, 3, H, W) and sizes (N, 2), the (height, width) of each one's picture, to a
    list of N `Detections`. Where it has attributes ``score_threshold`` and ``max_objects``, the job's
    go there. A label is a place in ``classes``; an empty name is a label that is never given. ``ids``
    are the numbers that the weights' own data set has for the same classes, ``aliases`` lead from
    their names to that data set's where they differ.

    ``parts`` are the names of submodules that any backend can run: tensors of one picture each, in lists
    and mappings, go in and out, and in between nothing depends on their values. ``box_parts`` are the
    same with tensors of one box each. Their precision is the job's; all else is in float32. ``notes`` are
    sentences on what was assumed of the weights, for the person who runs the job.
    """

    module: nn.Module
    resizing: Resizing
    classes: tuple[str, ...]
    ids: tuple[int, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    weights: str = ""
    library: str = ""
    parts: tuple[str, ...] = ()
    box_parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def resizing_for(self, runtime: Runtime) -> Resizing:
        """Return how pictures are prepared: in few shapes where a shape costs time or memory.

        Of detectors without ``parts`` nothing is known, so that their inputs stay as they are.
        """
        costly = runtime.backend == "compile" or runtime.device != "cpu"
        return self.resizing.with_few_shapes() if self.parts and costly else self.resizing


def probe_size(resizing: Resizing) -> tuple[int, int]:
    """Return the (height, width) of a small input, where the detector takes several."""
    return resizing.padded(PROBE if resizing.varies else resizing.size)


def check(detector: Detector, model: str, heads: Collection[Head] = ()) -> None:
    """Run one black picture through a detector, so that what does not fit is found before the first image.

    Raises:
        UserError: it refuses it, or gives other than `Detections` with what ``heads`` names.
    """
    height, width = probe_size(detector.resizing)
    try:
        with torch.inference_mode(), trying():
            found = detector.module(torch.zeros(1, 3, height, width), torch.tensor([[height, width]]))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"task.model: {model} refuses an input of {height} x {width} pixels: {error}\n"
            "  what to do: look at the model itself"
        ) from error
    wanted = ["boxes", "scores", "labels", *sorted(heads)]
    if len(found) != 1 or not set(wanted) <= set(found[0]):
        came = f": {', '.join(found[0])}" if len(found) == 1 and isinstance(found[0], Mapping) else ""
        raise UserError(
            f"task.model: {model} is expected to give for each picture {', '.join(wanted)}; "
            f"got {type(found).__name__} of {len(found)}{came}"
        )
