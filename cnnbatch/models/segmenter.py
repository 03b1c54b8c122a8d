"""A segmenter as one value: network, resizing, class names and the ids that their source has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.passes import trying
from cnnbatch.models.resizing import Resizing, Size

PROBE = (64, 96)
"""The (height, width) of the picture that shows whether a segmenter runs, where it takes any."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Segmenter:
    """A network that gives a class to every pixel.

    ``module`` maps floats (N, 3, H, W), normalised, to logits (N, C, h, w); h and w may be a stride smaller
    than H and W. ``resizing`` is how a picture becomes an input. A class is a place in ``classes``, which
    has C names. ``ids`` are the numbers that the weights' own data set has for the same classes, ``aliases``
    lead from their names to that data set's where they differ. ``is_scored`` says whether the logits tell how
    sure the network is. ``notes`` are sentences on what was assumed of the weights, for the person who runs
    the job.
    """

    module: nn.Module
    resizing: Resizing
    classes: tuple[str, ...]
    ids: tuple[int, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    weights: str = ""
    library: str = ""
    is_scored: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedWeights:
    """What a publisher says of a segmenter's weights; ``name`` is what the publisher calls them."""

    name: str
    resizing: Resizing
    classes: tuple[str, ...]
    licence: str | None = None


@dataclass(frozen=True)
class SegmenterArchitecture:
    """What a segmenter's name stands for before it has weights.

    ``make`` builds the module for a number of classes: a submodule ``backbone``, and behind it the head.
    ``resizing`` is for weights of which nothing is known, ``classes`` and ``aliases`` are those of the
    published ones. ``load`` gives the tensors of published weights by one of the ``names``, their file and
    what is said of them; ``recognised`` says that of a local file, by its hash alone. ``classifier`` is the
    classifier of torchvision that the backbone is taken from, whose published weights a training may begin
    with. ``ignored`` begins the names of tensors that a file may have and the module has not. ``connected``
    leads from convolutions of the head to the classifier's fully connected layers that they are.
    """

    name: str
    library: str
    make: Callable[[int], nn.Module]
    resizing: Resizing
    classifier: str
    classes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    load: Callable[[str, str | None], tuple[Mapping[str, Tensor], Path, PublishedWeights]] | None = None
    recognised: Callable[[Path], PublishedWeights | None] = lambda path: None
    ignored: tuple[str, ...] = ()
    connected: Mapping[str, str] = field(default_factory=dict)


def own_size(divisor: int = 1, fitted: bool = False) -> Resizing:
    """Return an input of the picture's own size, normalised as ImageNet's classifiers want it.

    It is padded to a multiple of ``divisor``, or ``fitted`` to the next one.
    """
    return Resizing(
        fit="multiples" if fitted else "own",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        divisor=divisor,
        rounding="exact",
        antialias=True,
    )


def probe_size(resizing: Resizing) -> Size:
    """Return the (height, width) of a small input, where the segmenter takes several."""
    return resizing.padded(resizing.resized(PROBE) if resizing.varies else resizing.size)


def stride_of(segmenter: Segmenter, side: int) -> int:
    """Return how many pixels of an input of ``side`` pixels a side are one logit.

    Raises:
        UserError: the network refuses such an input, or that is no whole number and the same both ways.
    """
    try:
        with torch.inference_mode(), trying():
            height, width = segmenter.module(torch.zeros(1, 3, side, side)).shape[2:]
    except RuntimeError as error:
        raise UserError(
            f"task.tile: the network takes no tiles, such as {side} x {side} pixels: {error}\n"
            "  what to do: leave task.tile out"
        ) from error
    if height != width or side % height:
        raise UserError(
            f"task.tile: expected a network whose logits are a whole part of its input's size; for {side} x "
            f"{side} pixels it gives {height} x {width}\n  what to do: leave task.tile out"
        )
    return side // int(height)


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
