"""How much of what exact search finds is found by approximate search: measured, never assumed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.approximate import FastScan, search_approximately
from cnnbatch.index.exact import Vectors, search_exactly, similarities
from cnnbatch.index.held_out import SHARE, numbers_of
from cnnbatch.index.manifest import Recall

NEAREST = 10
PROBES = 200
"""Vectors that are searched for: 2,000 neighbours, which place a recall of 0.98 within 0.006."""

_ROWS_AT_ONCE = 1 << 16


def probes_of(vectors: Vectors, rows: NDArray[np.int64], most: int = PROBES) -> NDArray[np.int64]:
    """Return the rows (P,), among ``rows``, of vectors that were held out: they follow from the vectors."""
    numbers, chosen = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        found = numbers_of(np.asarray(vectors[some, :4]))
        held = found % np.uint64(SHARE) == 0
        numbers, chosen = np.append(numbers, found[held]), np.append(chosen, some[held])
        order = np.argsort(numbers, kind="stable")[:most]
        numbers, chosen = numbers[order], chosen[order]
    return chosen


class RecallProbes:
    """Probes with what exact search finds for them, so that several ways to search can be measured."""

    def __init__(self, vectors: Vectors, rows: NDArray[np.int64], match: float | None) -> None:
        self._vectors, self._rows, self._match = vectors, rows, match
        self.probes = probes_of(vectors, rows)
        self._queries = np.asarray(vectors[self.probes], np.float32)
        every = None if len(rows) == len(vectors) else rows
        _, found = search_exactly(self._queries, vectors, NEAREST + 1, every)
        self._exact = self._without_itself(found)

    def measure(self, scan: FastScan, refine: int) -> Recall:
        """Return the recall of a scan; a neighbour that is as near as the exact one counts as found."""
        # One more is asked for than `NEAREST`, since the probe finds itself.
        _, rows = search_approximately(self._queries, scan, self._vectors, NEAREST + 1, refine)
        found = self._without_itself(rows)
        width = self._exact.shape[1]
        nearer = found >= self._exact[:, -1:]
        matches = self._matches(found)
        return Recall(
            at_10=float(nearer.sum() / max(1, len(self.probes) * width)),
            at_1=float((found[:, 0] >= self._exact[:, 0]).mean()),
            probes=len(self.probes),
            rows=len(self._rows),
            match=self._match,
            matches=matches[0] / matches[1] if matches[1] else None,
            match_count=matches[1],
        )

    def _matches(self, found: NDArray[np.float32]) -> tuple[int, int]:
        """Return how many of the nearest that are matches were found, and how many there are."""
        if self._match is None:
            return 0, 0
        true, there = ((one >= self._match).sum(axis=1) for one in (self._exact, found))
        return int(np.minimum(true, there).sum()), int(true.sum())

    def _without_itself(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the similarities (P, 10) of what was found (P, 11) but the probe itself, the best first."""
        scores = similarities(self._queries, self._vectors, rows)
        scores[rows == self.probes[:, None]] = -np.inf
        width = min(NEAREST, len(self._rows) - 1)
        best: NDArray[np.float32] = -np.sort(-scores, axis=1)[:, :width]
        return np.pad(best, ((0, 0), (0, width - best.shape[1])), constant_values=-np.inf)


def least_probes(measure: Callable[[int], Recall], target: float, lists: int) -> tuple[int, Recall]:
    """Return the least number of ``lists`` to scan whose recall reaches ``target``, and that recall.

    Numbers are tried at steps of the square root of two; recall is taken to grow with them. Where all lists
    do not reach the target, it is all of them.
    """
    steps = range(2 * lists.bit_length())
    numbers = sorted({ceil(lists / 2 ** (step / 2)) for step in steps})
    enough = bisect_left(numbers[:-1], True, key=lambda probes: measure(probes).at_10 >= target)
    return numbers[enough], measure(numbers[enough])


def least_refine(
    measure: Callable[[int], Recall], target: float, first: int, most: int
) -> tuple[int, Recall]:
    """Return the first refine factor of ``first``, twice that … ``most`` whose recall reaches ``target``.

    Where none does it is the last one, with its recall.
    """
    refine = first
    while True:
        found = measure(refine)
        if found.at_10 >= target or refine >= most:
            return refine, found
        refine *= 2
