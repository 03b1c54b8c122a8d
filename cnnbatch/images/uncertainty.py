"""Where in a picture a network is least sure: of several regions of one size, those with the least mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 8
"""A region is a part of so many of either side."""


@dataclass(frozen=True, slots=True)
class Region:
    """A region of a picture: ``score`` is its mean, ``box_xyxy`` is in pixels."""

    score: float
    box_xyxy: tuple[int, int, int, int]


def least_certain(cells: NDArray[np.float32], size: tuple[int, int], count: int) -> list[Region]:
    """Return up to ``count`` regions that do not overlap, the least certain first.

    ``cells`` (rows, columns) are means over the parts of a picture of ``size`` (height, width), as
    `cnnbatch.models.pixel_classes.PixelClasses` has them. Each time, of all regions that overlap none of
    those before, the one with the least mean over its pixels is taken.
    """
    edges = [np.arange(parts + 1) * side // parts for side, parts in zip(size, cells.shape, strict=True)]
    areas = np.outer(*(np.diff(one) for one in edges)).astype(float)
    tall, wide = (max(1, parts // SHARE) for parts in cells.shape)
    means = _sums(cells * areas, tall, wide) / _sums(areas, tall, wide)
    found: list[Region] = []
    while len(found) < count and np.isfinite(means).any():
        row, column = (int(one) for one in np.unravel_index(means.argmin(), means.shape))
        (top, bottom), (left, right) = (
            (int(one[at]), int(one[at + length]))
            for one, at, length in zip(edges, (row, column), (tall, wide), strict=True)
        )
        found.append(Region(float(means[row, column]), (left, top, right, bottom)))
        means[max(0, row - tall + 1) : row + tall, max(0, column - wide + 1) : column + wide] = np.inf
    return found


def _sums(values: NDArray[np.float64], tall: int, wide: int) -> NDArray[np.float64]:
    """Return the sums over all windows of ``tall`` rows and ``wide`` columns."""
    whole: NDArray[np.float64] = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found: NDArray[np.float64] = (
        whole[tall:, wide:] - whole[:-tall, wide:] - whole[tall:, :-wide] + whole[:-tall, :-wide]
    )
    return found
