"""What of a grouping is most likely wrong: the weakest faces of persons, the closest persons, unsure faces.

What people said already is no doubt: faces that are of one person, and persons who are two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.persons.group import FacesInOrder
from cnnbatch.index.persons.grouping import NOBODY, Ints, summed
from cnnbatch.index.persons.neighbours import edges
from cnnbatch.index.persons.record import Face, Persons, faces_of

MOST_COMPARED = 256
"""Faces of a person, the most typical, that are compared with those of another one by one."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Two rows of the index, of the persons ``one`` and ``other``, and the mean cosine that is in doubt.

    ``similarity`` is that of a face with the others of its person (then ``other`` is the same person), of two
    persons, or of a face that is unsure (``one`` is `NOBODY`) with a person.
    """

    one: int
    other: int
    rows: tuple[int, int]
    similarity: float


class GroupedFaces:
    """The grouped faces that an index has still, by place: ``rows`` (N,), and ``persons`` (N,) or `NOBODY`.

    ``near`` (N,) are the mean cosines with the other faces of the person, NaN where there are none.
    """

    def __init__(self, copy: LocalCopy, persons: Persons) -> None:
        rows = FacesInOrder.of(copy).rows_of(persons.faces)
        there = rows != NOBODY
        self._vectors, self._said = copy.vectors, persons.said
        self._places = {face: place for place, face in enumerate(faces_of(persons.faces.filter(there)))}
        self.rows: Ints = rows[there]
        self.persons: Ints = persons.numbers()[there]
        self.near: NDArray[np.float32] = persons.faces["similarity"].to_numpy()[there]

    @cached_property
    def typical_first(self) -> dict[int, Ints]:
        """The places of each person's faces, those first that are most similar to the others."""
        known = np.flatnonzero(self.persons != NOBODY)
        order = known[np.lexsort((known, -np.nan_to_num(self.near[known]), self.persons[known]))]
        numbers, starts = np.unique(self.persons[order], return_index=True)
        return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))

    def weakest(self) -> Iterator[Doubt]:
        """Yield of each person the face that is least similar to the others, the least similar first.

        It comes with the most typical of these. Faces that were said to be of one person are left out.
        """
        near = self.near.copy()
        near[[*self._there(face for one in self._said.together for face in one)]] = np.nan
        seen: set[int] = set()
        for place in np.argsort(near, kind="stable")[: np.isfinite(near).sum()].tolist():
            person = int(self.persons[place])
            if person not in seen:
                seen.add(person)
                typical = next(one for one in self.typical_first[person].tolist() if one != place)
                pair = (int(self.rows[place]), int(self.rows[typical]))
                yield Doubt(person, person, pair, float(near[place]))

    def closest(self) -> Iterator[Doubt]:
        """Yield pairs of persons, the most similar first, each with their two most similar faces."""
        pairs, cosines = self._similar
        for place in np.flatnonzero(pairs[:, 1] < len(self._numbers)):
            one, other = self._numbers[pairs[place]].tolist()
            yield Doubt(one, other, self._most_similar(one, other), float(cosines[place]))

    def unsure(self, most: int) -> Iterator[list[Doubt]]:
        """Yield unsure faces, each with at most so many persons, by their most typical faces.

        Both are in order, the most similar first.
        """
        pairs, cosines = self._similar
        is_face = (pairs[:, 0] < len(self._numbers)) & (pairs[:, 1] >= len(self._numbers))
        pairs, cosines = pairs[is_face], cosines[is_face]
        _, first = np.unique(pairs[:, 1], return_index=True)
        for node in pairs[np.sort(first), 1]:
            row = int(self.rows[self._nodes == node][0])
            places = np.flatnonzero(pairs[:, 1] == node)[:most]
            yield [self._face_and(row, int(pairs[place, 0]), float(cosines[place])) for place in places]

    def _face_and(self, row: int, node: int, similarity: float) -> Doubt:
        """Return an unsure face with the person of a node."""
        person = int(self._numbers[node])
        typical = int(self.rows[self.typical_first[person][0]])
        return Doubt(NOBODY, person, (row, typical), similarity)

    @cached_property
    def _numbers(self) -> Ints:
        """The numbers of the persons, ascending: the first nodes. The others are the unsure faces."""
        return np.array([*self.typical_first], np.int64)

    @cached_property
    def _nodes(self) -> Ints:
        """The node of each face (N,)."""
        is_unsure = self.persons == NOBODY
        nodes = np.searchsorted(self._numbers, self.persons)
        nodes[is_unsure] = len(self._numbers) + np.arange(is_unsure.sum())
        return nodes

    @cached_property
    def _similar(self) -> tuple[Ints, NDArray[np.float32]]:
        """Neighbours among nodes, (E, 2), of each the lower first, and their mean cosines (E,), descending.

        Those of which it was said that they are two are left out.
        """
        if not len(self.rows):
            return np.empty((0, 2), np.int64), np.empty(0, np.float32)
        means = summed(self._vectors, self.rows, self._nodes).means
        pairs = edges(means, np.arange(len(means)), -1.0)
        apart = {pair for sides in self._said.apart for pair in self._apart(*sides)}
        codes = [one * len(means) + other for one, other in apart]
        pairs = pairs[~np.isin(pairs[:, 0] * len(means) + pairs[:, 1], codes)]
        cosines = np.einsum("nd,nd->n", means[pairs[:, 0]], means[pairs[:, 1]])
        order = np.argsort(-cosines, kind="stable")
        return pairs[order], cosines[order]

    def _apart(self, one: Iterable[Face], other: Iterable[Face]) -> Iterator[tuple[int, int]]:
        """Yield the nodes of two sides that were said to be of two persons, the lower number first."""
        sides = [{*self._nodes[[*self._there(faces)]].tolist()} for faces in (one, other)]
        for first, second in product(*sides):
            yield min(first, second), max(first, second)

    def _there(self, faces: Iterable[Face]) -> Iterator[int]:
        """Yield the places of faces that the index has still."""
        yield from (self._places[face] for face in faces if face in self._places)

    def _most_similar(self, one: int, other: int) -> tuple[int, int]:
        """Return the rows of the two most similar faces of two persons, among the most typical."""
        rows = [self.rows[self.typical_first[person][:MOST_COMPARED]] for person in (one, other)]
        first, second = (np.asarray(self._vectors[some], np.float32) for some in rows)
        place = np.unravel_index(np.argmax(first @ second.T), (len(first), len(second)))
        return int(rows[0][place[0]]), int(rows[1][place[1]])
