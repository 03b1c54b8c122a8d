"""The boundaries of the classes in a map: how near two of them lie, and the bands along them.

All classes of an image are done at once, each with a bit of its own; the price is another pass for every
sixty-four of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import hypot, isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.metrics.values import ratio

_WIDTHS = [np.dtype(f"u{size}") for size in (1, 2, 4, 8)]
_ROWS = 128  # that are widened at a time, so that they stay in the processor's cache
_BAND = 0.02  # of the image's diagonal


def boundary_f1(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Return the boundary F1 of each class in an image, (C,), NaN where the truth (H, W) has none of it.

    Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation? (2013): the
    precision is the share of the predicted boundary's pixels that lie nearer than the tolerance, 0.75 %
    of the image's diagonal, to a pixel of the true boundary; the recall is the converse. A boundary's
    pixels are those of the class that have one of their four neighbours outside of it; outside of the
    image is outside, so that every class has a boundary. Numbers from C on are no class.
    """
    height, width = truth.shape
    square = (9 * (height**2 + width**2) - 1) // 160_000  # The greatest d² with d < 0.0075 diagonals.
    edges = [np.where(_beside_another(each), each, classes) for each in (predicted, truth)]
    found = np.zeros((2, 2, classes), np.int64)  # of prediction and truth: near the other, and in all
    for some in _together(truth, classes):
        bits = [_bits(each, some, classes) for each in edges]
        for side, (own, other) in enumerate((bits, bits[::-1])):
            there = np.flatnonzero(own)
            near = (own.ravel()[there] & _widened(other, square).ravel()[there]) != 0
            numbers = edges[side].ravel()[there]
            found[side, 0] += np.bincount(numbers[near], minlength=classes)
            found[side, 1] += np.bincount(numbers, minlength=classes)
    precision, recall = ratio(found[:, 0], found[:, 1])
    matched = recall > 0  # Then the precision is above 0, too.
    f1 = np.divide(2 * precision * recall, precision + recall, out=np.zeros(classes), where=matched)
    return np.where(np.isnan(recall), np.nan, f1)


def band(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels of a map (H, W) are in the inner boundary of their own class.

    Cheng, Girshick, Dollár, Berg, Kirillov: Boundary IoU (2021), and its ``mask_to_boundary``: the pixels
    that 3 × 3 erosions of their class's mask take away, as many of them as 0.02 of the image's diagonal has
    pixels, at least one. Beyond the image there is nothing of a class. So these are the pixels with another
    number, or the edge, no farther away than that in rows and in columns.
    """
    distance = max(1, round(_BAND * hypot(*numbers.shape)))
    edge = _beside_another(numbers, diagonally=True)
    return _any_near(_any_near(edge, distance - 1, 0), distance - 1, 1)


def _beside_another(numbers: NDArray[Any], diagonally: bool = False) -> NDArray[np.bool_]:
    """Return which pixels have another number, or the edge, among their four neighbours, or all eight."""
    found = np.zeros(numbers.shape, np.bool_)
    found[[0, -1]] = found[:, [0, -1]] = True
    for down, right in ((1, 0), (0, 1), (1, 1), (1, -1))[: 4 if diagonally else 2]:
        one, other = (_part(numbers.shape, way * down, way * right) for way in (-1, 1))
        differs = numbers[one] != numbers[other]
        found[one] |= differs
        found[other] |= differs
    return found


def _part(shape: tuple[int, ...], down: int, right: int) -> tuple[slice, ...]:
    """Return the part of a map that moves within it where all is moved back by so many rows and columns."""
    steps = zip(shape, (down, right), strict=True)
    return tuple(slice(max(step, 0), size + min(step, 0)) for size, step in steps)


def _together(truth: NDArray[Any], classes: int) -> Iterator[NDArray[np.int64]]:
    """Yield the classes that the truth has, as many at a time as there are bits."""
    there = np.flatnonzero(np.bincount(truth.ravel(), minlength=classes)[:classes])
    most = 8 * _WIDTHS[-1].itemsize
    yield from (there[start : start + most] for start in range(0, len(there), most))


def _bits(edges: NDArray[Any], some: NDArray[np.int64], classes: int) -> NDArray[Any]:
    """Return a bit for the class of each pixel, 0 where it is none of ``some``; of the narrowest type."""
    known: NDArray[Any] = np.zeros(classes + 1, next(one for one in _WIDTHS if len(some) <= 8 * one.itemsize))
    known[some] = np.left_shift(1, np.arange(len(some)), dtype=known.dtype, casting="unsafe")
    found: NDArray[Any] = known[edges]
    return found


def _widened(bits: NDArray[Any], square: int) -> NDArray[Any]:
    """Return for each pixel the bits of all pixels at a squared distance of at most ``square``."""
    margin, found = isqrt(square), np.empty_like(bits)
    for start in range(0, len(bits), _ROWS):
        first = max(0, start - margin)
        rows = bits[first : start + _ROWS + margin]
        found[start : start + _ROWS] = _widened_rows(rows, square)[start - first :][:_ROWS]
    return found


def _widened_rows(bits: NDArray[Any], square: int) -> NDArray[Any]:
    """Widen along the rows step by step, and take each row of the disc when it is as wide as that."""
    across, half, found = bits.copy(), 0, bits.copy()
    for down in range(min(isqrt(square), len(bits) - 1), -1, -1):
        while half < isqrt(square - down * down):
            half += 1
            across[:, half:] |= bits[:, :-half]
            across[:, :-half] |= bits[:, half:]
        found[down:] |= across[: len(bits) - down]
        found[: len(bits) - down] |= across[down:]
    return found


def _any_near(flags: NDArray[np.bool_], distance: int, axis: int) -> NDArray[np.bool_]:
    """Return whether any flag is no farther away than ``distance`` along an axis, which doubles a window."""
    margins = [(0, 0), (0, 0)]
    margins[axis] = (distance, distance)
    windows, width = np.pad(flags, margins), 1
    while width < 2 * distance + 1:
        step = min(width, 2 * distance + 1 - width)
        ends = [(slice(None),) * axis + (part,) for part in (slice(None, -step), slice(step, None))]
        windows, width = windows[ends[0]] | windows[ends[1]], width + step
    return windows
