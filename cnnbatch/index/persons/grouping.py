"""Groups faces into persons: new faces join persons that are there, found one, or stay unsure.

A person who is there never merges with another by itself: a number means one person as long as nobody says
otherwise. Rounds of average linkage follow each other, the first on faces, the next on what they became,
until a round merges nothing: so the graph has to connect a person only somewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.duplicates import Groups as Connected
from cnnbatch.index.exact import Vectors
from cnnbatch.index.persons.agglomerate import Groups, Pair
from cnnbatch.index.persons.neighbours import edges

NOBODY = -1
"""In place of the number of a person: a face that is new, or unsure."""

_BLOCK = 8_192  # faces whose vectors are float32 at once
_WHOLE = 400
"""Groups up to which every two are connected, where a person is to be cut in two."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Said:
    """What people said of faces, by their numbers: which are of one person, and which are not of one."""

    together: tuple[tuple[int, ...], ...] = ()
    apart: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass
class Nodes:
    """Groups so far: of each the sum of its vectors (G, D), how many, and whether it is a person already."""

    sums: NDArray[np.float32]
    counts: Ints
    fixed: NDArray[np.bool_]
    apart: set[Pair]

    @property
    def means(self) -> NDArray[np.float32]:
        """The means of their vectors (G, D)."""
        return np.asarray(self.sums / self.counts[:, None], np.float32)

    def merged(self, least: float, pairs: Iterable[Pair]) -> Ints | None:
        """Merge what ``pairs`` connect; return the new number of each group, None where nothing changed."""
        groups = Groups(self.sums, self.counts.tolist(), pairs, self.apart, np.flatnonzero(self.fixed))
        groups.merge_all(least)
        if not groups.merges:
            return None
        _, number = np.unique(groups.roots(), return_inverse=True)
        self.become(number)
        return number

    def become(self, number: Ints) -> None:
        """Give each group its new number (G,); those of one number become one."""
        count = int(number.max()) + 1
        sums = np.zeros((count, self.sums.shape[1]), np.float32)
        np.add.at(sums, number, self.sums)
        self.sums, self.counts = sums, np.bincount(number, self.counts).astype(np.int64)
        self.fixed = np.bincount(number, self.fixed) > 0
        self.apart = {(int(number[one]), int(number[other])) for one, other in self.apart}


def group_faces(
    vectors: Vectors, rows: Ints, persons: Ints, said: Said, join: float, unsure: float
) -> tuple[Ints, Ints]:
    """Return the group of each face (N,), and the faces that are unsure.

    The vectors are those of ``rows`` (N,); ``persons`` (N,) are the persons there are, `NOBODY` for a face
    that is to be grouped. A face joins a group where the mean cosine with its faces is at least ``join``.
    One that stays alone is unsure where it is at least ``unsure`` to some group that it might be of.
    """
    group = _first_groups(persons, said.together)
    nodes = summed(vectors, rows, group)
    nodes.fixed[group[persons != NOBODY]] = True
    for one, other in said.apart:
        nodes.apart.update(product({*group[[*one]].tolist()}, {*group[[*other]].tolist()}))
    while True:
        sought = np.flatnonzero(~nodes.fixed)
        number = nodes.merged(join, edges(nodes.means, sought, join).tolist())
        if number is None:
            break
        group = number[group]
    return group, np.flatnonzero(_unsure(nodes, unsure)[group])


def halves(vectors: Vectors, rows: Ints, together: Iterable[Sequence[int]]) -> NDArray[np.bool_]:
    """Return which of a person's faces (N,) are in the second half, where the person is cut in two.

    The cut is the last merge of average linkage. Those that are ``together`` stay so; all False: no cut.
    """
    group = _first_groups(np.full(len(rows), NOBODY), together)
    nodes = summed(vectors, rows, group)
    while len(nodes.counts) > _WHOLE:
        near = edges(nodes.means, np.arange(len(nodes.counts)), -1.0)
        groups = Groups(nodes.sums, nodes.counts.tolist(), near.tolist())
        groups.merge_all(float(np.median(np.einsum("ij,ij->i", *nodes.means[near.T]))))
        _, number = np.unique(groups.roots(), return_inverse=True)
        nodes.become(number)
        group = number[group]
    count = len(nodes.counts)
    pairs = [(one, other) for one in range(count) for other in range(one)]
    whole = Groups(nodes.sums, nodes.counts.tolist(), pairs)
    whole.merge_all(-1.0)
    if not whole.merges:
        return np.zeros(len(rows), bool)
    whole.undo_last()
    roots = whole.roots()[group]
    return np.asarray(roots != roots[0])


def _first_groups(persons: Ints, together: Iterable[Sequence[int]]) -> Ints:
    """Return the number of the group that each face (N,) begins in."""
    connected = Connected(len(persons))
    for faces in together:
        connected.connect((np.full(len(faces), faces[0]), np.array(faces)))
    known = np.flatnonzero(persons != NOBODY)
    _, first, which = np.unique(persons[known], return_index=True, return_inverse=True)
    connected.connect((known, known[first][which]))
    _, group = np.unique(connected.first(), return_inverse=True)
    return np.asarray(group, np.int64)


def summed(vectors: Vectors, rows: Ints, group: Ints) -> Nodes:
    """Return the groups of faces (N,) with the sums of their vectors, which are read block by block."""
    count = int(group.max()) + 1
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    for start in range(0, len(rows), _BLOCK):
        some = slice(start, start + _BLOCK)
        np.add.at(sums, group[some], np.asarray(vectors[rows[some]], np.float32))
    return Nodes(sums, np.bincount(group), np.zeros(count, bool), set())


def _unsure(nodes: Nodes, least: float) -> NDArray[np.bool_]:
    """Return which groups (G,) are one face alone that is rather similar to another group."""
    alone = np.flatnonzero((nodes.counts == 1) & ~nodes.fixed)
    found = np.zeros(len(nodes.counts), bool)
    forbidden = nodes.apart | {(other, one) for one, other in nodes.apart}
    for one, other in edges(nodes.means, alone, least).tolist():
        if (one, other) not in forbidden:
            found[[one, other]] = True
    found[np.setdiff1d(np.arange(len(found)), alone)] = False
    return found
