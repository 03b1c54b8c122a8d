"""Small masks of objects as COCO's run lengths at a picture's size, without the pixels in between.

Resized bilinearly, as torchvision resizes them, a mask is linear down each column between two of its own
rows, so that only pixels between a row inside and a row outside are computed. The price: the arithmetic of
torch's kernel is repeated here to the last bit, as it is on processors that multiply and add in one step (all
with AVX2); on others torch rounds a pixel in a hundred thousand of the outline to the other side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from cnnbatch.images import rle

_THRESHOLD = np.float32(0.5)
_ROUNDING = np.float32(1e-6)
"""More than a value between two probabilities can be beside them by rounding."""
_SMALL = 128
"""Height and width together up to which torch has another kernel, with other rounding."""
_AT_ONCE = 1 << 20
"""Pixels of an object that are in memory at a time, at most: columns are taken some at a time."""

_NEAR = 4
"""Rows that are looked at where a column passes the threshold."""
_STEEP = 1e-5
"""By how much a column changes from row to row, at least, for rounding to matter in one row alone."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Size = tuple[int, int]


def pasted(masks: Floats, boxes_xyxy: Floats, size: Size) -> list[dict[str, Any]]:
    """Return masks (K, M, M) of probabilities in boxes (K, 4) as `truth.MASK` for a picture of ``size``.

    ``size`` is (height, width), the boxes are in its pixels, both float32. A pixel is inside above 0.5. The
    same as torchvision's ``paste_masks_in_image`` and pycocotools' ``encode`` give.
    """
    padded = np.pad(masks.astype(np.float32, copy=False), ((0, 0), (1, 1), (1, 1)))
    frames = _expanded(boxes_xyxy.astype(np.float32, copy=False), padded.shape[-1] / masks.shape[-1])
    edges = [_outline(*one, size) for one in zip(padded, frames.tolist(), strict=True)]
    return rle.from_edges(edges, size)


def _expanded(boxes: Floats, scale: float) -> Integers:
    """Return the first and last pixels (K, 4) of boxes with a border of one of the mask's own pixels.

    torchvision, ``roi_heads.expand_boxes``.
    """
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32(scale)
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.int64)


class _Side(NamedTuple):
    """How the pixels of one side are made of two of the mask's own each: their places and weights, (n,)."""

    first: Integers
    second: Integers
    of_first: Floats
    of_second: Floats

    def __len__(self) -> int:
        return len(self.first)

    def part(self, some: slice) -> _Side:
        """Return some of the pixels."""
        return _Side(self.first[some], self.second[some], self.of_first[some], self.of_second[some])


def _side(count: int, pixels: int) -> _Side:
    """Return how ``count`` values become ``pixels``: torch's bilinear ``interpolate``."""
    scale, half = np.float32(count) / np.float32(pixels), np.float32(0.5)
    place = np.maximum((np.arange(pixels, dtype=np.float32) + half) * scale - half, np.float32(0))
    first = np.minimum(place.astype(np.int64), count - 1)
    of_second = np.clip(place - first.astype(np.float32), np.float32(0), np.float32(1))
    return _Side(first, np.minimum(first + 1, count - 1), np.float32(1) - of_second, of_second)


def _between(first: Floats, second: Floats, of_first: Floats, of_second: Floats) -> Floats:
    """Return the weighted sum, rounded as where the first product is added to the second in one step."""
    exact = first.astype(np.float64) * of_first  # 48 bits of 53.
    found: Floats = (exact + second * of_second).astype(np.float32)
    return found


def _outline(mask: Floats, frame: tuple[int, int, int, int], size: Size) -> Integers:
    """Return the `rle.from_edges` of a mask (M, M) in the pixels of ``frame``, (x1, y1, x2, y2)."""
    (height, width), (left, top, right, bottom) = size, frame
    shape, x, y = (max(1, bottom - top + 1), max(1, right - left + 1)), max(left, 0), max(top, 0)
    # Of the resized mask, what is in the picture.
    rows = slice(y - top, max(y, min(bottom + 1, height)) - top)
    columns = slice(x - left, max(x, min(right + 1, width)) - left)
    edges = (_by_pixels if sum(shape) <= _SMALL else _by_columns)(mask, shape, rows, columns, height)
    return _merged(edges + x * height + y, height * width)


def _by_pixels(mask: Floats, shape: Size, rows: slice, columns: slice, height: int) -> Integers:
    """Return the edges of a part of a mask that torch resizes to ``shape``.

    Places are counted down the columns of a picture of ``height``, from the first pixel of the part.
    """
    whole = interpolate(torch.from_numpy(mask)[None, None], size=shape, mode="bilinear")[0, 0].numpy()
    inside = np.pad(whole[rows, columns].T > _THRESHOLD, ((0, 0), (1, 1)))
    column, row = np.nonzero(inside[:, 1:] != inside[:, :-1])
    return column * height + row


def _by_columns(mask: Floats, shape: Size, rows: slice, columns: slice, height: int) -> Integers:
    """Return the same without having all pixels."""
    down, across = _side(len(mask), shape[0]).part(rows), _side(len(mask), shape[1]).part(columns)
    edges = [np.zeros(0, np.int64)]
    if len(down):
        edges += [
            _edges(values, down, height) + column * height
            for column, values in _columns(mask, across, len(down))
        ]
    return np.concatenate(edges)


def _columns(mask: Floats, across: _Side, rows: int) -> Iterator[tuple[int, Floats]]:
    """Yield columns (n, M) of a mask that is resized across alone, some at a time, and the first's number."""
    step, columns = max(1, _AT_ONCE // rows), np.ascontiguousarray(mask.T)
    for start in range(0, len(across), step):
        some = across.part(slice(start, start + step))
        weights = some.of_first[:, None], some.of_second[:, None]
        yield start, _between(columns[some.first], columns[some.second], *weights)


def _edges(values: Floats, down: _Side, height: int) -> Integers:
    """Return where columns (n, M) begin and end to be inside, in turns, resized to the rows ``down``."""
    starts = np.flatnonzero(np.diff(down.first, prepend=-1))  # Rows between the same two of the mask's.
    above, below = (values.take(side[starts], axis=1) for side in (down.first, down.second))  # [n, pieces]
    inside = np.minimum(above, below) > _THRESHOLD + _ROUNDING
    unsure = np.flatnonzero(~inside & (np.maximum(above, below) > _THRESHOLD - _ROUNDING))
    above, below = above.ravel()[unsure], below.ravel()[unsure]
    column, piece = np.divmod(unsure, len(starts))
    rows = _looked_at(above, below, piece, starts, down)  # [unsure, rows]
    state = _between(above[:, None], below[:, None], down.of_first[rows], down.of_second[rows]) > _THRESHOLD
    within, row = np.nonzero(state[:, 1:] != state[:, :-1])
    # Each piece begins as the one before it ended, or there is an edge; nothing is inside after the last.
    before, after = (np.zeros((len(values), len(starts) + 1), np.bool_) for _ in range(2))
    before[:, 1:], after[:, :-1] = inside, inside
    before[column, piece + 1], after[column, piece] = state[:, -1], state[:, 0]
    of_piece, place = np.divmod(np.flatnonzero(before != after), len(starts) + 1)
    ends = np.append(starts, len(down))[place] + of_piece * height
    return np.sort(np.concatenate([ends, rows[within, row + 1] + column[within] * height]))


def _looked_at(above: Floats, below: Floats, piece: Integers, starts: Integers, down: _Side) -> Integers:
    """Return the rows of some pieces, (p, rows), beyond which a piece stays what it is at these rows' ends.

    Those next to where it passes the threshold, unless it passes too slowly for that to be exact: then all.
    """
    begin, end = starts[piece], np.append(starts[1:], len(down))[piece]
    count = int((end - begin).max(initial=1))
    slope = (below - above).astype(np.float64)
    if count > _NEAR and bool((np.abs(slope) > _STEEP * count).all()):
        passed = down.first[begin] + (_THRESHOLD - above) / slope
        nearest = np.searchsorted(down.first + down.of_second.astype(np.float64), passed)
        begin = np.clip(nearest - _NEAR // 2, begin, np.maximum(begin, end - _NEAR))
        count = _NEAR
    rows: Integers = np.minimum(begin[:, None] + np.arange(count), end[:, None] - 1)
    return rows


def _merged(edges: Integers, pixels: int) -> Integers:
    """Return edges without those where one column ends and the next begins, and without the picture's end."""
    doubled = np.flatnonzero(edges[1:] == edges[:-1])
    kept = edges < pixels
    kept[doubled] = kept[doubled + 1] = False
    return edges[kept]
