"""The boxes of MTCNN between its networks: the pyramid, squares, offsets, and which of several stays.

All boxes are float32 (K, 4), x1, y1, x2, y2 in pixels of the picture, on the CPU.

Source: Zhang, Zhang, Li and Qiao 2016, https://arxiv.org/abs/1604.02878, with the rounding of
facenet-pytorch 2.6.0. There a box's last pixel belongs to it after P-Net: sides are x2 - x1 + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from cnnbatch.models.architectures.mtcnn import CELL, STRIDE

Size = tuple[int, int]

_FACTOR = 0.709  # from one level of the pyramid to the next
_MOST = 30_000  # windows of one picture that are compared with each other: only broken weights give more
_LEAST_ROWS = 32  # of one pass: the ten rows that two of them share are then at most a seventh


@dataclass(frozen=True)
class Windows:
    """Boxes with their scores (K,) and the places of their pictures (K,), which ascend."""

    boxes: Tensor
    scores: Tensor
    pictures: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: Tensor) -> Windows:
        return Windows(self.boxes[chosen], self.scores[chosen], self.pictures[chosen])


def scales(size: Size, min_size: int) -> Iterator[float]:
    """Yield the scales of a picture's pyramid, in which faces of ``min_size`` have 12 pixels at first."""
    scale = CELL / min_size
    shorter = min(size) * scale
    while shorter >= CELL:
        yield scale
        scale, shorter = scale * _FACTOR, shorter * _FACTOR


def passes(count: int, size: Size, pixels: int) -> Iterator[tuple[slice, slice]]:
    """Yield which of ``count`` pictures of a size go through P-Net at once, and which rows of its answers.

    They have about ``pixels`` pixels: either several pictures, or a band of one that is larger.
    """
    height, width = size
    rows = -(-(height - 2) // STRIDE) - 4  # of P-Net's answers: what its convolutions and its pool leave
    at_once = pixels // (height * width)
    if at_once:
        for first in range(0, count, at_once):
            yield slice(first, min(first + at_once, count)), slice(0, rows)
        return
    most = max(_LEAST_ROWS, (pixels // width - CELL) // STRIDE + 1)
    band = -(-rows // -(-rows // most))  # All of them about as high.
    for picture in range(count):
        for top in range(0, rows, band):
            yield slice(picture, picture + 1), slice(top, min(top + band, rows))


def rows_of(answers: slice) -> slice:
    """Return the rows of a level that P-Net reads for some rows of its answers."""
    return slice(answers.start * STRIDE, (answers.stop - 1) * STRIDE + CELL + 1)


def cell_boxes(columns_rows: Tensor, scale: float) -> Tensor:
    """Return the boxes of P-Net's answers at (column, row) (K, 2) of a level."""
    corners = (columns_rows * STRIDE).float()
    return torch.cat([(corners + 1) / scale, (corners + CELL) / scale], 1).floor()


def squares(boxes: Tensor) -> Tensor:
    """Return squares of the longer side around the same centres."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.amax(1, keepdim=True)
    corners = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return torch.cat([corners, corners + longer], 1)


def sides(boxes: Tensor) -> Tensor:
    """Return the (width, height) (K, 2) of boxes whose last pixel belongs to them."""
    return boxes[:, 2:] - boxes[:, :2] + 1


def moved(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Return boxes moved by offsets (K, 4) in shares of their sides."""
    return boxes + offsets * sides(boxes).repeat(1, 2)


def pixels_of(boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels of each picture that boxes cover, and which of the boxes (M,) cover any.

    ``sizes`` (K, 2) are (height, width). The first are int64 (M, 4), the last row and column exclusive.
    """
    whole = boxes.trunc()
    first, last = whole[:, :2].clamp(min=1), whole[:, 2:].minimum(sizes.flip(1))
    covering = (last >= first).all(1).nonzero().squeeze(1)  # Those of numbers that are none are not, either.
    return torch.cat([first - 1, last], 1)[covering].long(), covering


def suppressed(windows: Windows, threshold: float) -> Tensor:
    """Return which windows stay: those that no better one of their picture overlaps by an IoU above this.

    They come by picture, the best first.
    """
    return _by_picture(windows, lambda boxes, scores: nms(boxes, scores, threshold))


def suppressed_inside(windows: Windows, threshold: float) -> Tensor:
    """Return which windows stay where overlap is the share of the smaller box: one inside another goes.

    O-Net's scores saturate at 1. Which of several such windows is first is what NumPy's sort makes of them,
    as in facenet-pytorch: any other order would give other faces.
    """
    return _by_picture(windows, lambda boxes, scores: _suppressed_inside(boxes, scores, threshold))


def _by_picture(windows: Windows, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Choose among the windows of each picture."""
    kept = [torch.empty(0, dtype=torch.int64)]
    first = 0
    for count in torch.bincount(windows.pictures).tolist():
        of_picture = slice(first, first + count)
        boxes, scores = windows.boxes[of_picture], windows.scores[of_picture]
        if count > _MOST:
            best = scores.argsort(descending=True, stable=True)[:_MOST]
            kept.append(best[choose(boxes[best], scores[best])] + first)
        elif count:
            kept.append(choose(boxes, scores) + first)
        first += count
    return torch.cat(kept)


def _suppressed_inside(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    corners = boxes.numpy()
    low, high = corners[:, :2], corners[:, 2:]
    areas = (high - low + 1).prod(1)
    left, kept = np.argsort(scores.numpy())[::-1], []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        shared = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left]) + 1
        overlap = shared.clip(min=0).prod(1) / np.minimum(areas[best], areas[left])
        left = left[overlap <= threshold]
    return torch.tensor(np.array(kept, np.int64))


def joined(parts: Sequence[Windows]) -> Windows:
    """Return the windows of all parts, one after the other; their pictures may then not ascend."""
    none = Windows(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    each = [(part.boxes, part.scores, part.pictures) for part in (none, *parts)]
    return Windows(*map(torch.cat, zip(*each, strict=True)))
