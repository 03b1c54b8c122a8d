"""Logits of a large input from overlapping tiles, a row of tiles at a time.

Neighbours share twice the overlap. There their logits are blended: in the middle half linearly, while in the
outer quarter, where a tile sees its own edge instead of the picture, it has no weight at all. So where the
network sees no farther than half the overlap each way, every logit is what the whole input would give. Tiles
begin at multiples of the network's coarsest stride, since only such shifts shift its features. The price: one
row of tiles of the logits is held, all over the width of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

import torch
from torch import Tensor

from cnnbatch.models.resizing import Box, Size

ALIGNMENT = 32
"""The coarsest stride of usual networks, in pixels."""

Span = tuple[int, int]
"""From a first pixel of a side up to the last, which is no more in it."""

Run = Callable[[Tensor, Sequence[Box]], Tensor]
"""From tiles, uint8 (N, 3, h, w), and the part of each that is picture to float32 (N, C, h / s, w / s)."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How inputs are cut: tiles of ``tile`` pixels a side, each reaching ``overlap`` into its neighbours.

    ``stride`` is that of the network's logits; tiles begin at multiples of ``alignment``. ``at_once`` tiles
    go through the network together.
    """

    tile: int
    overlap: int
    stride: int
    alignment: int = ALIGNMENT
    at_once: int = 1

    def spans(self, side: int) -> list[Span]:
        """Return the tiles along a side; the last ends with it, and is shorter where the side is uneven."""
        if side <= self.tile:
            return [(0, side)]
        step = (self.tile - 2 * self.overlap) // self.alignment * self.alignment
        starts = list(range(0, side - self.tile, step))
        last = ceil((side - self.tile) / self.alignment) * self.alignment
        return [*((start, start + self.tile) for start in starts), (last, side)]

    def places(self, span: Span) -> Span:
        """Return from which up to which logit of the side a tile gives them."""
        first = span[0] // self.stride
        return first, first + ceil((span[1] - span[0]) / self.stride)

    def weights(self, spans: Sequence[Span]) -> list[Tensor]:
        """Return the weights of each tile's logits along a side; those of one place add up to 1."""
        found = [self._weights(span, spans[0][0], spans[-1][1]) for span in spans]
        total = torch.zeros(self.places(spans[-1])[1])
        for span, one in zip(spans, found, strict=True):
            total[slice(*self.places(span))] += one
        return [one / total[slice(*self.places(span))] for span, one in zip(spans, found, strict=True)]

    def _weights(self, span: Span, start: int, stop: int) -> Tensor:
        """Return 1 inside a tile, down to 0 before an edge that is none of the input's."""
        first, last = self.places(span)
        if not self.overlap:
            return torch.ones(last - first)
        centres = (torch.arange(last - first) + 0.5) * self.stride
        far = torch.full_like(centres, float("inf"))
        before = far if span[0] == start else centres
        behind = far if span[1] == stop else span[1] - span[0] - centres
        return ((torch.minimum(before, behind) - self.overlap / 2) / self.overlap).clamp(0, 1)


class TiledLogits:
    """The logits of one input, computed as they are asked for; see `pixel_classes.LogitRows`.

    ``canvas`` is the input, uint8 (3, H, W), of which ``picture`` is the part that is picture. ``run`` gives
    the ``classes`` logits of several views, one behind the other.
    """

    def __init__(self, canvas: Tensor, picture: Box, run: Run, tiling: Tiling) -> None:
        self._canvas, self._picture, self._run, self._tiling = canvas, picture, run, tiling
        self._tall, self._wide = (tiling.spans(side) for side in canvas.shape[1:])
        self._down, self._across = tiling.weights(self._tall), tiling.weights(self._wide)
        self.size: Size = (tiling.places(self._tall[-1])[1], tiling.places(self._wide[-1])[1])
        self._held: Tensor | None = None
        self._start = self._done = self._next = 0

    def rows(self, first: int, last: int) -> Tensor:
        """Return rows of all views' logits, (views * C, last - first, w)."""
        while self._done < last:
            self._add_row_of_tiles(first)
        assert self._held is not None
        return self._held[:, first - self._start : last - self._start]

    def view(self, number: int, classes: int) -> ViewRows:
        """Return the logits of one view, (classes, rows, w)."""
        return ViewRows(self, number * classes, (number + 1) * classes)

    def _add_row_of_tiles(self, needed: int) -> None:
        """Compute the next row of tiles; what is held from the row ``needed`` on is kept, or from its own."""
        span, down = self._tall[self._next], self._down[self._next]
        top, bottom = self._tiling.places(span)
        for (left, right), across, logits in self._row_of_tiles(span):
            held = self._reserved(logits, min(needed, top), bottom)
            place = held[:, top - self._start : bottom - self._start, left:right]
            weights = down[:, None] * across
            place.addcmul_(logits, weights.to(logits.device))
        self._next += 1
        is_last = self._next == len(self._tall)
        self._done = self.size[0] if is_last else self._tiling.places(self._tall[self._next])[0]

    def _reserved(self, like: Tensor, needed: int, bottom: int) -> Tensor:
        """Return what is held from the row ``needed`` on, with room down to the row ``bottom``."""
        if self._held is None:
            self._held = like.new_zeros((len(like), 0, self.size[1]))
        lacking = bottom - self._start - self._held.shape[1]
        if lacking:
            kept = self._held[:, needed - self._start :]
            self._held = torch.cat([kept, like.new_zeros((len(like), lacking, self.size[1]))], 1)
            self._start = needed
        return self._held

    def _row_of_tiles(self, tall: Span) -> Iterator[tuple[Span, Tensor, Tensor]]:
        """Yield of each tile of a row where its logits are, their weights along it, and the logits."""
        tiles = zip(self._wide, self._across, strict=True)
        for _, alike in groupby(tiles, key=lambda one: one[0][1] - one[0][0]):
            some = list(alike)
            for at in range(0, len(some), self._tiling.at_once):
                part = some[at : at + self._tiling.at_once]
                logits = self._logits(tall, [wide for wide, _ in part])
                for (wide, across), one in zip(part, logits, strict=True):
                    yield self._tiling.places(wide), across, one

    def _logits(self, tall: Span, wides: Sequence[Span]) -> Tensor:
        """Run the network on some tiles of a row that have one width."""
        tiles = torch.stack([self._canvas[:, slice(*tall), slice(*wide)] for wide in wides])
        found = self._run(tiles, [self._inside(tall, wide) for wide in wides])
        expected = [last - first for first, last in (self._tiling.places(one) for one in (tall, wides[0]))]
        if list(found.shape[2:]) != expected:
            raise ValueError(
                f"the network gives {tuple(found.shape[2:])} logits for a tile of {tuple(tiles.shape[2:])} "
                f"pixels, expected {tuple(expected)}"
            )
        return found

    def _inside(self, tall: Span, wide: Span) -> Box:
        """Return the part of a tile that is picture."""
        top, left, bottom, right = self._picture
        return (
            _within(top, tall),
            _within(left, wide),
            _within(bottom, tall),
            _within(right, wide),
        )


@dataclass(frozen=True, slots=True)
class ViewRows:
    """Some channels of a tiled input's logits, from ``first`` up to ``last``."""

    tiled: TiledLogits
    first: int
    last: int

    @property
    def size(self) -> Size:
        """See `pixel_classes.LogitRows`."""
        return self.tiled.size

    def rows(self, first: int, last: int) -> Tensor:
        """See `pixel_classes.LogitRows`."""
        return self.tiled.rows(first, last)[self.first : self.last]


def _within(place: int, span: Span) -> int:
    return min(max(place, span[0]), span[1]) - span[0]
