"""From a network's logits to a class for every pixel of the original, a band of rows at a time.

Logits are resized before the largest is taken, as the reference implementations do: first to the network's
input, whose padding is then cut off, and from there to the original, both bilinear. Each is linear and
separable, so that rows come first, on the few columns that the network gives, and only a band of the original
exists in floats: the memory does not grow with the picture, and a band stays in a processor's caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from cnnbatch.images.class_map import NONE
from cnnbatch.models.resizing import Canvas, Size

CELLS = 32
"""Parts of each side of a picture for which it is kept how sure the network is."""

_BAND_VALUES = {"cpu": 1 << 19}  # Logits of a band: 2 MiB, which a core's own cache holds; a GPU wants more.
_BAND_VALUES_ELSEWHERE = 1 << 27


class LogitRows(Protocol):
    """The logits of one picture, taken from the top to the bottom."""

    @property
    def size(self) -> Size:
        """How many rows and columns there are in all."""

    def rows(self, first: int, last: int) -> Tensor:
        """Return rows as float32 (C, last - first, columns); none before ``first`` is asked for again."""


@dataclass(frozen=True, slots=True)
class WholeLogits:
    """Logits (C, h, w), float32, that are all there."""

    logits: Tensor

    @property
    def size(self) -> Size:
        """See `LogitRows`."""
        return self.logits.shape[1], self.logits.shape[2]

    def rows(self, first: int, last: int) -> Tensor:
        """See `LogitRows`."""
        return self.logits[:, first:last]


@dataclass(frozen=True, slots=True)
class PixelClasses:
    """The likeliest class of every pixel of one picture, and how sure the network is of it.

    ``numbers`` are places among the classes, (H, W), uint8, or int32 where there are more than 255.
    ``cells`` are means of the largest probability over parts of the picture, float32, at most `CELLS` each
    way: part i of n of a side of s pixels is from i * s // n up to (i + 1) * s // n. ``confidence`` is the
    mean over all pixels.
    """

    numbers: Tensor
    confidence: Tensor
    cells: Tensor


def pixel_classes(views: Sequence[LogitRows], classes: int, canvas: Canvas, device: str) -> PixelClasses:
    """Return the likeliest class of every pixel of the original, on ``device``, where the logits are.

    ``views`` are logits of the same picture: of several, the probabilities are averaged.
    """
    height, width = canvas.original
    sources = [_Resized(view, canvas, device) for view in views]
    numbers = torch.empty(
        canvas.original, dtype=torch.uint8 if classes <= NONE else torch.int32, device=device
    )
    certainty = _Certainty(canvas.original, device)
    step = max(1, _BAND_VALUES.get(device, _BAND_VALUES_ELSEWHERE) // (classes * width))
    for first in range(0, height, step):
        last = min(height, first + step)
        largest, places = _likeliest([one.columns(first, last) for one in sources])
        numbers[first:last] = places.T
        certainty.add(first, largest.T)
    return PixelClasses(numbers, certainty.mean(), certainty.cells())


def _likeliest(bands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the largest probability and its class, both (W, rows), from logits (C, W, rows) of each view."""
    probabilities = bands[0].softmax(0)
    for band in bands[1:]:
        probabilities += band.softmax(0)
    places = _places(bands[0] if len(bands) == 1 else probabilities)
    return probabilities.amax(0).div_(len(bands)), places


def _places(scores: Tensor) -> Tensor:
    """Return where the largest of (C, W, rows) are, the first of equal ones; twice as fast as ``argmax``."""
    count = len(scores)
    if count > NONE:
        return scores.argmax(0)
    ranks = torch.arange(count, 0, -1, dtype=torch.uint8, device=scores.device)[:, None, None]
    is_largest = (scores == scores.amax(0)).view(torch.uint8)
    return count - is_largest.mul_(ranks).amax(0)


class _Resized:
    """One view's logits at the original's size, a band at a time.

    Rows come first, on the few columns that the network gives; then what are columns lie behind one another
    in memory, so that both are weighted sums of long vectors.
    """

    def __init__(self, view: LogitRows, canvas: Canvas, device: str) -> None:
        self._view = view
        self._down, self._across = (
            _Side(
                _Line(view.size[axis], canvas.shape[axis], device),
                canvas.corner[axis],
                _Line(canvas.inside[axis], canvas.original[axis], device),
            )
            for axis in (0, 1)
        )
        self._width = canvas.original[1]

    def columns(self, first: int, last: int) -> Tensor:
        """Return rows of the original, from the first up to the last, as (C, W, rows)."""
        start, stop = self._down.needed(first, last)
        band = self._down.resized(self._view.rows(start, stop), start, first, last).transpose(1, 2)
        start, stop = self._across.needed(0, self._width)
        return self._across.resized(band[:, start:stop], start, 0, self._width)


@dataclass(frozen=True, slots=True)
class _Side:
    """A side of a view: how it becomes the input's, and how the picture's part of that the original's."""

    to_input: _Line
    corner: int
    to_original: _Line

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """Return which of the view's places it takes to make some of the original's."""
        return self.to_input.needed(*self._inside(first, last))

    def resized(self, band: Tensor, start: int, first: int, last: int) -> Tensor:
        """Return places of the original, made of a band (C, places, k) that begins with ``start``."""
        inside = self._inside(first, last)
        band = self.to_input.resized(band, start, *inside)
        return self.to_original.resized(band, inside[0] - self.corner, first, last)

    def _inside(self, first: int, last: int) -> tuple[int, int]:
        start, stop = self.to_original.needed(first, last)
        return self.corner + start, self.corner + stop


class _Line:
    """Bilinear interpolation along one side, by the arithmetic of torch's ``interpolate``."""

    def __init__(self, have: int, want: int, device: str) -> None:
        self._same = have == want
        places = (torch.arange(want, dtype=torch.float32) + 0.5) * (have / want) - 0.5
        places.clamp_(min=0)
        low = places.to(torch.int64).clamp_(max=have - 1)
        high = (low + 1).clamp_(max=have - 1)
        self._first, self._last = low.tolist(), high.tolist()
        self._places = low.to(device), high.to(device)
        self._weights = (places - low).to(device)[:, None]

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """Return which places it takes to make some, from the first up to the last."""
        return (first, last) if self._same else (self._first[first], self._last[last - 1] + 1)

    def resized(self, band: Tensor, start: int, first: int, last: int) -> Tensor:
        """Return some places, made of a band (C, places, k) that begins with the place ``start``."""
        if self._same:
            return band[:, first - start : last - start]
        low, high = (band.index_select(1, one[first:last] - start) for one in self._places)
        return low.lerp_(high, self._weights[first:last])


class _Certainty:
    """Adds up the largest probabilities over parts of a picture, always in the same order."""

    def __init__(self, size: Size, device: str) -> None:
        self._edges = [_edges(side) for side in size]
        self._size, self._device = size, device
        self._sums = torch.zeros((len(self._edges[0]) - 1, size[1]), device=device)

    def add(self, first: int, largest: Tensor) -> None:
        """Take the rows (rows, W) from ``first`` on."""
        last = first + len(largest)
        for part, (start, stop) in enumerate(pairwise(self._edges[0])):
            if start < last and stop > first:
                self._sums[part] += largest[max(0, start - first) : stop - first].sum(0)

    def mean(self) -> Tensor:
        """Return the mean over all pixels."""
        return self._sums.sum() / (self._size[0] * self._size[1])

    def cells(self) -> Tensor:
        """Return the mean of each part, (rows, columns)."""
        parts = [self._sums[:, start:stop].sum(1) for start, stop in pairwise(self._edges[1])]
        heights, widths = (torch.tensor(one, device=self._device).diff() for one in self._edges)
        return torch.stack(parts, 1) / (heights[:, None] * widths)


def _edges(side: int) -> list[int]:
    parts = min(CELLS, side)
    return [part * side // parts for part in range(parts + 1)]
