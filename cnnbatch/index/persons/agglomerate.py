"""Average linkage on a graph of neighbours that keeps what people said: these are one, those are two.

Vectors have the length 1, so that the mean cosine of the pairs between two groups is the scalar product of
their means: a group is a sum and a count, and its similarity to any other costs one product. Two groups are
looked at where the graph connects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Merge:
    """Two groups that became one, by their numbers; ``similarity`` is the mean cosine between them."""

    one: int
    other: int
    similarity: float


class Groups:
    """Groups that are merged, the most similar two first.

    The first groups are given, numbered from 0: the sums of their vectors, float32 (G, D), and how many these
    are. ``edges`` are those that may be one, ``apart`` those that never are, and no two of ``fixed`` are.
    """

    def __init__(
        self,
        sums: NDArray[np.float32],
        counts: Sequence[int],
        edges: Iterable[Pair],
        apart: Iterable[Pair] = (),
        fixed: Iterable[int] = (),
    ) -> None:
        count = len(counts)
        self._means = np.empty((max(1, 2 * count - 1), sums.shape[1]), np.float32)
        self._means[:count] = sums / np.asarray(counts, np.float32)[:, None]
        self._counts = [*counts]
        self._near: list[set[int]] = [set() for _ in counts]
        self._apart: list[set[int]] = [set() for _ in counts]
        self._fixed = [False] * count
        for number in fixed:
            self._fixed[number] = True
        for sets, pairs in ((self._apart, apart), (self._near, edges)):
            for one, other in pairs:
                if one != other:
                    sets[one].add(other)
                    sets[other].add(one)
        self._parent = list(range(count))
        self.merges: list[Merge] = []

    def merge_all(self, least: float) -> None:
        """Merge while two connected groups have a similarity of at least ``least``.

        Of equally similar pairs the one with the lower numbers comes first.
        """
        heap = self._connected(least)
        while heap:
            negative, one, other = heappop(heap)
            if self._parent[one] != one or self._parent[other] != other:
                continue  # One of the two is a part of a larger group by now.
            number = self._merged(one, other, -negative)
            for similarity, near in self._similar(number, least):
                heappush(heap, (-similarity, near, number))

    def undo_last(self) -> None:
        """Undo the last merge for `roots`; nothing more can be merged then."""
        last = self.merges[-1]
        self._parent[last.one], self._parent[last.other] = last.one, last.other

    def roots(self) -> NDArray[np.int64]:
        """Return of each of the first groups the number of the group that it is in now."""
        roots = [*self._parent]
        for number in reversed(range(len(roots))):
            roots[number] = roots[roots[number]]
        return np.array(roots[: len(roots) - len(self.merges)], np.int64)

    def _connected(self, least: float) -> list[tuple[float, int, int]]:
        heap = [
            (-similarity, min(near, number), max(near, number))
            for number in range(len(self._counts))
            for similarity, near in self._similar(number, least)
            if near < number
        ]
        heapify(heap)
        return heap

    def _similar(self, number: int, least: float) -> Iterable[tuple[float, int]]:
        """Yield the groups that one may be merged with now, and how similar they are."""
        near = [one for one in self._near[number] if self._may_join(number, one)]
        if near:
            scores = self._means[near] @ self._means[number]
            for place in np.flatnonzero(scores >= least).tolist():
                yield float(scores[place]), near[place]

    def _may_join(self, one: int, other: int) -> bool:
        return other not in self._apart[one] and not (self._fixed[one] and self._fixed[other])

    def _merged(self, one: int, other: int, similarity: float) -> int:
        number = len(self._counts)
        count = self._counts[one] + self._counts[other]
        shares = [self._counts[one] / count, self._counts[other] / count]
        self._means[number] = shares[0] * self._means[one] + shares[1] * self._means[other]
        self._counts.append(count)
        self._parent[one] = self._parent[other] = number
        self._parent.append(number)
        self._fixed.append(self._fixed[one] or self._fixed[other])
        for sets in (self._near, self._apart):
            joint = (sets[one] | sets[other]) - {one, other}
            for each in joint:
                sets[each] -= {one, other}
                sets[each].add(number)
            sets.append(joint)
        self.merges.append(Merge(one, other, similarity))
        return number
