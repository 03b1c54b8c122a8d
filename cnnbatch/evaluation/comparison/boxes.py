"""Which objects of two outputs are the same, for all images of a batch at once.

Only the pairs that overlap enough are matched in a loop, and they are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.metrics.iou_types import Overlap
from cnnbatch.metrics.objects import ObjectPairs, Objects, pairs

_AT_ONCE = 4096
"""Objects of A that are compared at once: in crowded images their pairs are what fills the memory."""


def match(a: Objects, b: Objects, iou: float, overlap: Overlap) -> tuple[ObjectPairs, ObjectPairs]:
    """Match objects whose IoU is at least ``iou``: those of one label, then the rest whatever their labels.

    Greedily, as COCO matches detections to truth: A's objects in the order of their scores, each with the
    free one of B that it overlaps most, by ``overlap``. So A and B changed for each other may match a little
    otherwise. Both are sorted by image and class; returns the numbers of the objects, twice.
    """
    same = _greedy(a, b, iou, overlap, any_label=False)
    rest_a, rest_b = others(len(a), same.first), others(len(b), same.second)
    other = _greedy(a.take(rest_a), b.take(rest_b), iou, overlap, any_label=True)
    return same, ObjectPairs(rest_a[other.first], rest_b[other.second])


def others(count: int, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers below ``count`` that are not ``taken``."""
    return np.setdiff1d(np.arange(count), taken)


def _greedy(a: Objects, b: Objects, iou: float, overlap: Overlap, any_label: bool) -> ObjectPairs:
    near = list(_near(a, b, iou, overlap, any_label))
    first, second, shared = (np.concatenate([one[place] for one in near]) for place in range(3))
    order = np.lexsort((second, -shared, first, -a.score[first]))
    free_a, free_b = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)
    chosen = np.zeros(len(order), np.bool_)
    for pair in order.tolist():
        one, other = first[pair], second[pair]
        if free_a[one] and free_b[other]:
            free_a[one] = free_b[other] = False
            chosen[pair] = True
    return ObjectPairs(first[chosen], second[chosen])


def _near(
    a: Objects, b: Objects, iou: float, overlap: Overlap, any_label: bool
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the numbers of the objects that overlap enough, and their IoU, some at a time; once at least."""
    least = min(iou, 1 - 1e-10)  # As pycocotools: of a box with itself it may be 1 less a rounding.
    for start in range(0, max(len(a), 1), _AT_ONCE):
        some = a.take(np.arange(start, min(start + _AT_ONCE, len(a))))
        found = pairs(some, b, any_label)
        shared = overlap(some, b, found)
        near = shared >= least
        yield start + found.first[near], found.second[near], shared[near]
