"""What an index answers about some embeddings: a row each, which then lies in the row of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.exact import Found, ranked, search_exactly
from cnnbatch.index.gallery import Gallery
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.search import Index, in_order
from cnnbatch.index.search_decision import SearchDecision
from cnnbatch.truth import BOX

AT_ONCE = 4_096
"""Embeddings that are searched for at once."""

_MATCHES_AT_ONCE = 1 << 17
_SPARE = 16  # matches beside the k best, so that equal ones at the end are told apart by their names

Queries = NDArray[np.float32]
Places = NDArray[np.int64]

_DECISION: list[pa.Field[Any]] = [
    pa.field("is_known", pa.bool_()),
    pa.field("similarity", pa.float32()),
    pa.field("probability", pa.float64()),
    pa.field("threshold", pa.float32()),
    pa.field("reason", pa.string()),
]
DECISION = pa.schema(_DECISION)
"""What is said of a best match: whether it reaches the ``threshold`` (null where nothing decides, and the
``reason`` why), how similar it is, and how probable it is that it is of the same person."""


class Answering(Protocol):
    """What answers about embeddings: ``fields`` are the columns."""

    @property
    def fields(self) -> pa.Schema:
        """The columns of an answer."""

    def answer(self, queries: Queries, own: Places) -> pa.Table:
        """Return a row of `fields` for each query (Q, D).

        ``own`` (Q,) are the rows of the index that the queries themselves are, which are no match; -1: none.
        """


@dataclass(frozen=True)
class Matches:
    """The ``k`` rows that are most similar, of some ``rows`` of an index."""

    index: Index
    rows: Places
    k: int
    decision: SearchDecision

    @property
    def fields(self) -> pa.Schema:
        """The columns of an answer; ``matches`` are as `Index.search` gives them."""
        return pa.schema([*DECISION, ("matches", pa.list_(self._match))])

    @property
    def _match(self) -> pa.DataType:
        schema = self.index.copy().tables[0].schema
        kept = [schema.field(name) for name in self.index.manifest.kept]
        names = [("id", pa.string()), ("key", pa.string()), ("output", pa.string()), ("box", BOX)]
        return pa.struct([*names, *kept, ("similarity", pa.float32()), ("probability", pa.float64())])

    def answer(self, queries: Queries, own: Places) -> pa.Table:
        """Return a row of `fields` for each query (Q, D)."""
        step = max(1, min(AT_ONCE, _MATCHES_AT_ONCE // self.k))
        blocks = [slice(start, start + step) for start in range(0, len(queries), step)]
        return pa.concat_tables(
            [self.fields.empty_table(), *(self._answer(queries[some], own[some]) for some in blocks)]
        )

    def _answer(self, queries: Queries, own: Places) -> pa.Table:
        copy = self.index.copy()
        scores, rows = self._found(copy, queries, own)
        there = np.nonzero(rows >= 0)
        table = self.index.addressed(copy.rows(rows[there]))
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        columns["similarity"] = pa.array(scores[there])
        columns["probability"] = _probabilities(self.decision, scores[there])
        fields: Any = self._match
        struct = pa.StructArray.from_arrays([columns[one.name] for one in fields], fields=[*fields])
        matches = _lists(struct, (rows >= 0).sum(axis=1))
        best = np.where(rows[:, 0] >= 0, scores[:, 0], np.nan)
        return pa.table([*decided(best, self.decision).columns, matches], schema=self.fields)

    def _found(self, copy: LocalCopy, queries: Queries, own: Places) -> Found:
        whole = len(self.rows) == len(copy.vectors)
        wanted = min(self.k + _SPARE, len(self.rows))
        _, rows = search_exactly(queries, copy.vectors, wanted, None if whole else self.rows)
        rows = np.where(rows == own[:, None], -1, rows)
        scores, rows = in_order(ranked(queries, copy.vectors, rows), copy)
        return scores[:, : self.k], rows[:, : self.k]


_PERSON = pa.struct([("person", pa.string()), ("id", pa.string()), ("similarity", pa.float32())])


@dataclass(frozen=True)
class Names:
    """Who each face is, by a gallery; ``most`` people are ranked."""

    gallery: Gallery
    most: int
    decision: SearchDecision

    @property
    def fields(self) -> pa.Schema:
        """The columns of an answer; ``person`` is null unless the best match is good enough."""
        return pa.schema([("person", pa.string()), *DECISION, ("matches", pa.list_(_PERSON))])

    def answer(self, queries: Queries, own: Places) -> pa.Table:
        """Return a row of `fields` for each query (Q, D)."""
        blocks = [slice(start, start + AT_ONCE) for start in range(0, len(queries), AT_ONCE)]
        return pa.concat_tables(
            [self.fields.empty_table(), *(self._answer(queries[some], own[some]) for some in blocks)]
        )

    def _answer(self, queries: Queries, own: Places) -> pa.Table:
        scores, places = self.gallery.nearest(queries, self.most, own)
        there = np.nonzero(places >= 0)
        faces = places[there]
        names = self.gallery.people_names
        people = names.take(self.gallery.people[faces])
        ids = pa.array(self.gallery.ids_of(self.gallery.rows[faces]), pa.string())
        struct = pa.StructArray.from_arrays(
            [people, ids, pa.array(scores[there])], fields=[*_fields_of(_PERSON)]
        )
        best = np.where(places[:, 0] >= 0, scores[:, 0], np.nan)
        said = decided(best, self.decision)
        who: Any = pa.array(self.gallery.people[places[:, 0]], mask=~_is_true(said["is_known"]))
        person = names.take(who)
        return pa.table(
            [person, *said.columns, _lists(struct, (places >= 0).sum(axis=1))], schema=self.fields
        )


def decided(best: NDArray[np.floating[Any]], decision: SearchDecision) -> pa.Table:
    """Return what is said of best matches by their similarities (Q,), NaN for none: columns `DECISION`."""
    least, none = decision.threshold.similarity, np.isnan(best)
    known = pa.nulls(len(best), pa.bool_()) if least is None else pa.array(best >= least, mask=none)
    columns = [
        known,
        pa.array(best.astype(np.float32), mask=none),
        _probabilities(decision, best),
        pa.array(np.full(len(best), least or 0, np.float32), mask=np.full(len(best), least is None)),
        pa.array([decision.threshold.reason] * len(best), pa.string()),
    ]
    return pa.table(columns, schema=DECISION)


def _probabilities(decision: SearchDecision, similarities: NDArray[np.floating[Any]]) -> pa.Array[Any]:
    if decision.calibrated is None:
        return pa.nulls(len(similarities), pa.float64())
    found = decision.calibrated.pairs.probabilities(similarities, decision.prior)
    return pa.array(found, mask=np.isnan(found))


def _lists(values: pa.Array[Any], counts: NDArray[np.int64]) -> pa.Array[Any]:
    """Return values as lists of so many each."""
    offsets: Any = pa.array(np.append(0, np.cumsum(counts)).astype(np.int32))
    found: pa.Array[Any] = pa.ListArray.from_arrays(offsets, values)
    return found


def _is_true(values: Any) -> NDArray[np.bool_]:
    return np.asarray(values.fill_null(False))


def _fields_of(struct: Any) -> Sequence[pa.Field[Any]]:
    return [*struct]


def require_rows(rows: Sequence[Any] | Places, index: Index, what: Mapping[str, str | None]) -> None:
    """Insist that there is anybody to be found; raises UserError with ``what`` was asked."""
    if not len(rows):
        asked = ", ".join(f"{name}={value}" for name, value in what.items() if value is not None)
        raise UserError(
            f"nobody is to be found in {index.uri} by {asked or 'its rows'}\n"
            "  what to do: give a condition that rows fulfil, or people who are named"
        )
