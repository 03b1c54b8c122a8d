"""A segmenter as one value: network, resizing, class names and the ids that their source has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.passes import trying
from cnnbatch.models.resizing import Resizing, Size

PROBE = (64, 96)
"""The (height, width) of the picture that shows whether a segmenter runs, where it takes any."""


@dataclass(frozen=True)
class Segmenter:
    """A network that gives a class to every pixel.

    ``module`` maps floats (N, 3, H, W), normalised, to logits (N, C, h, w); h and w may be a stride smaller
    than H and W. ``resizing`` is how a picture becomes an input. A class is a place in ``classes``, which
    has C names. ``ids`` are the numbers that the weights' own data set has for the same classes, ``aliases``
    lead from their names to that data set's where they differ.

    ``parts`` are the names of submodules that any backend can run, as a `cnnbatch.models.Detector` has them;
    none where the whole module is one network. ``notes`` are sentences on what was assumed of the weights,
    for the person who runs the job.
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
    notes: tuple[str, ...] = ()


def probe_size(resizing: Resizing) -> Size:
    """Return the (height, width) of a small input, where the segmenter takes several."""
    return resizing.padded(PROBE if resizing.varies else resizing.size)


def check(segmenter: Segmenter, model: str) -> None:
    """Run one black picture through a segmenter, so that what does not fit is found before the first image.

    Raises:
        UserError: it refuses it, gives other than a logit of each class a place, or they are not finite.
    """
    height, width = probe_size(segmenter.resizing)
    try:
        with torch.inference_mode(), trying():
            found = segmenter.module(torch.zeros(1, 3, height, width))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"task.model: {model} refuses an input of {height} x {width} pixels: {error}\n"
            "  what to do: look at task.size, and at the model itself"
        ) from error
    _require_logits(found, len(segmenter.classes), model)


def _require_logits(found: object, classes: int, model: str) -> None:
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 1:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"task.model: {model} is expected to give for each picture a map of logits a class, "
            f"(1, {classes}, height, width); got {what}"
        )
    if found.shape[1] != classes:
        raise UserError(
            f"task.classes: {model} gives logits of {found.shape[1]} classes, but there are {classes} class "
            f"names\n  what to do: give task.classes the {found.shape[1]} names, as a list or as a file with "
            "one a line"
        )
    if not bool(found.isfinite().all()):
        raise UserError(
            f"task.weights: {model} gives infinite or undefined outputs for a black picture\n"
            "  what to do: look whether the weights are damaged"
        )
