"""Faces whose people are known, to be searched among: mapped, with two numbers a face in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.index.embeddings import EmbeddedRows
from cnnbatch.index.exact import Found, Vectors, ranked, search_exactly
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.named_pictures import FOLDER, folders_of, largest_faces
from cnnbatch.index.one_to_many import Enrolled

_SPARE = 8  # Faces that are looked at for each person who is ranked: a person may have several.

Places = NDArray[np.int64]
Ids = Callable[[Places], list[str]]


@dataclass(frozen=True)
class Gallery:
    """Faces at ``rows`` (G,) of ``vectors`` (N, D), ascending; ``people`` (G,) are places in ``names``.

    ``ids_of`` gives the ids of some rows.
    """

    vectors: Vectors
    rows: Places
    people: NDArray[np.int32]
    names: Sequence[str]
    ids_of: Ids

    def __len__(self) -> int:
        """Return how many faces there are."""
        return len(self.rows)

    @cached_property
    def places(self) -> dict[str, int]:
        """Each name's place in ``names``."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def people_names(self) -> pa.Array[Any]:
        """The names as an array of Arrow's."""
        return pa.array(self.names, pa.string())

    @cached_property
    def enrolled(self) -> Enrolled:
        """The faces as those of a one-to-many evaluation."""
        return Enrolled(self.vectors, self.rows, self.people.astype(np.int64))

    def nearest(self, queries: NDArray[np.float32], most: int, own: Places) -> Found:
        """Return of each query (Q, D) the ``most`` most similar people, best first, each by the best face.

        Rows are places among the faces, -1 where there are no more people. ``own`` (Q,) are rows of
        ``vectors`` that are no match of their query, -1 for none.
        """
        people = min(most, len(self.names))
        scores = np.full((len(queries), people), -np.inf, np.float32)
        places = np.full((len(queries), people), -1, np.int64)
        lacking, depth = np.arange(len(queries)), people * _SPARE
        while len(lacking):  # Those whose nearest faces are of too few people are searched for more deeply.
            found = self._faces(queries[lacking], min(depth, len(self)), own[lacking])
            scores[lacking], places[lacking] = self._first_of_each(found, people)
            done = places[lacking, -1] >= 0
            lacking = lacking[~done] if depth < len(self) else lacking[:0]
            depth *= _SPARE
        return scores, places

    def _faces(self, queries: NDArray[np.float32], depth: int, own: Places) -> Found:
        """Return the most similar faces of each query, as places, without itself."""
        rows = None if len(self) == len(self.vectors) else self.rows
        _, found = search_exactly(queries, self.vectors, min(depth + 1, len(self)), rows)
        found = np.where(found == own[:, None], -1, found)
        scores, found = ranked(queries, self.vectors, found)
        return scores, np.where(found < 0, -1, np.searchsorted(self.rows, found))

    def _first_of_each(self, found: Found, people: int) -> Found:
        """Return of faces (Q, K), best first, the first of each person, at most ``people`` of them."""
        scores, places = found
        who = np.where(places < 0, -1, self.people[places])
        order = np.argsort(who, axis=1, kind="stable")
        ordered = np.take_along_axis(who, order, 1)
        first = np.ones(who.shape, np.bool_)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        is_first = np.empty_like(first)
        np.put_along_axis(is_first, order, first & (ordered >= 0), 1)
        rank = np.cumsum(is_first, axis=1) - 1
        lines, columns = np.nonzero(is_first & (rank < people))
        best = np.full((len(who), people), -np.inf, np.float32), np.full((len(who), people), -1, np.int64)
        best[0][lines, rank[lines, columns]] = scores[lines, columns]
        best[1][lines, rank[lines, columns]] = places[lines, columns]
        return best


def gallery_of_index(copy: LocalCopy, people: str, rows: Places) -> Gallery:
    """Return those of some ``rows`` of an index whose people are known, of each picture the largest face.

    ``people`` is a column that the index keeps, or `FOLDER`. One segment is looked at after the other: no
    picture's faces lie in two.
    """
    numbers: dict[str, int] = {}
    found: list[Places] = []
    codes: list[NDArray[np.int32]] = []
    for some, names in _named(copy, people, rows):
        known = np.array([bool(name) for name in names], np.bool_)
        found.append(some[known])
        codes.append(np.array([numbers.setdefault(name, len(numbers)) for name in names if name], np.int32))
    return Gallery(
        copy.vectors,
        np.concatenate([np.empty(0, np.int64), *found]),
        np.concatenate([np.empty(0, np.int32), *codes]),
        [*numbers],
        lambda chosen: [*map(str, copy.rows(chosen)["id"].to_pylist())],
    )


def gallery_of_photos(found: EmbeddedRows) -> Gallery:
    """Return the largest face of each picture that was embedded, by the folders of their people."""
    largest = largest_faces(found.rows["key"], found.rows["box"])
    names = names_of(found.rows.take(largest), FOLDER)
    known = np.array([bool(name) for name in names], np.bool_)
    people = [*dict.fromkeys(name for name in names if name)]
    numbers = {name: number for number, name in enumerate(people)}
    return Gallery(
        found.vectors,
        largest[known],
        np.array([numbers[name] for name in names if name], np.int32),
        people,
        lambda rows: [*map(str, found.rows["id"].take(rows).to_pylist())],
    )


def _named(copy: LocalCopy, people: str, rows: Places) -> Iterator[tuple[Places, Sequence[str | None]]]:
    """Yield the largest faces of each segment's pictures among ``rows``, and whose they are."""
    columns = [] if people == FOLDER else [people]
    edges = np.searchsorted(rows, copy.starts)
    for table, start, low, high in zip(copy.tables, copy.starts, edges, edges[1:], strict=False):
        if low == high:
            continue
        here = rows[low:high]
        chosen = table.select(["key", "box", *columns]).take(here - start)
        largest = largest_faces(chosen["key"], chosen["box"])
        yield here[largest], names_of(chosen.take(largest), people)


def names_of(table: pa.Table, people: str) -> Sequence[str | None]:
    """Return whose each row of a table is, by a column, or by the folder of its key; None for nobody's."""
    if people == FOLDER:
        return [folder or None for folder in folders_of([*map(str, table["key"].to_pylist())])]
    return [None if value is None else str(value) for value in table[people].to_pylist()]
