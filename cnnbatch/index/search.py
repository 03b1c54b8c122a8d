"""An index as a person has it in Python: `cnnbatch.open(INDEX).search(vectors, k, where=…)`.

Importing it costs neither Ray nor torch; only photos to search for need a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.humanize import counted
from cnnbatch.index.approximate import FastScan, search_approximately
from cnnbatch.index.duplicates import grouped_rows
from cnnbatch.index.embeddings import in_words
from cnnbatch.index.exact import Found, ranked, search_exactly
from cnnbatch.index.local_copy import LocalCopy, local_copy
from cnnbatch.index.manifest import NAME, Manifest, read_manifest
from cnnbatch.index.objects import DamagedObject, read_codebook
from cnnbatch.index.where import Condition, parse_where
from cnnbatch.storage import Storage, StorageOptions, join, normalize, redact

if TYPE_CHECKING:
    from cnnbatch.index.codebook import Codebook
    from cnnbatch.output.embeddings import EmbeddingSpace

EXACT_QUERIES = 1_000
"""Queries from which on all vectors are compared: a product of matrices is then as fast as the codes."""
MOST_RESULTS = 10_000

_SPARE = 16  # candidates beside the k best, so that equal ones at the end are told apart by their names
_CANDIDATES_AT_ONCE = 1 << 19
_HELD_BYTES = 64 << 20  # of vectors of few rows, which are kept as float32
_NUMBER = "\0row"  # which is the name of no column


@dataclass(frozen=True, slots=True)
class _Scope:
    """The rows that are searched; their codes where these are scanned, else, of few, their vectors (N, D)."""

    rows: NDArray[np.int64]
    scan: FastScan | None = None
    vectors: NDArray[np.float32] | None = None


class Index:
    """An index as it is now, read-only; `refresh` takes over a later state."""

    def __init__(self, uri: str, storage: Storage, manifest: Manifest, etag: str) -> None:
        self.uri, self._storage = uri, storage
        self.manifest, self.etag = manifest, etag
        self._copies: dict[bool, LocalCopy] = {}
        self._scopes: dict[str | None, _Scope] = {}

    def __len__(self) -> int:
        """Return how many embeddings are searched."""
        return self.manifest.live

    def __repr__(self) -> str:
        """Return a line with the counts."""
        rows = counted(len(self), "embedding")
        return f"<Index {redact(self.uri)}: {rows} of {in_words(self.space)}>"

    @property
    def space(self) -> EmbeddingSpace:
        """What the vectors are: those of another space can't be searched for."""
        return self.manifest.embedding_space

    @property
    def is_exact(self) -> bool:
        """Whether every search compares all vectors."""
        return self.manifest.codebook is None

    @property
    def storage(self) -> Storage:
        """What the index is read through."""
        return self._storage

    def refresh(self) -> bool:
        """Take over the state that the index has now; say whether it is another one."""
        found = _require(self.uri, self._storage)
        if found[1] == self.etag:
            return False
        self.manifest, self.etag = found
        self._copies.clear()
        self._scopes.clear()
        self.__dict__.pop("codebook", None)
        return True

    def search(
        self,
        queries: NDArray[Any] | Sequence[Sequence[float]] | str | Path | Sequence[str | Path],
        k: int = 10,
        where: str | None = None,
        skip_damaged: bool = False,
    ) -> pa.Table:
        """Return the ``k`` rows that are most similar to each query, the most similar first.

        Queries are vectors (Q, D), one vector (D,), or the paths of photos, which are embedded as the index
        was. ``where`` is a condition on columns that rows have to fulfil, as in ``country = 'DE'``. With
        ``skip_damaged`` segments that are missing or damaged are left out; `damaged` names them.

        The columns are ``query``, its number; of photos ``query_id``, ``query_key`` (the address) and
        ``query_box``; ``rank``, from 1; ``id``, ``key``, ``output`` (an address), ``part``, ``row``, ``box``
        (null of whole pictures), the columns that the index keeps, and ``similarity``, the cosine. Raises
        UserError.
        """
        if _are_photos(queries):
            return self._search_photos(queries, k, where, skip_damaged)
        vectors = unit_queries(queries, self.manifest.dimensions)
        if not 1 <= k <= MOST_RESULTS:
            raise UserError(f"k: expected 1 to {MOST_RESULTS:,} results, got {k:,}")
        copy = self._copy(skip_damaged)
        scope = self._scope(copy, where)
        if len(vectors) >= EXACT_QUERIES:
            scope = replace(scope, scan=None)
        step = max(1, _CANDIDATES_AT_ONCE // (k * self.manifest.refine))
        blocks = [vectors[start : start + step] for start in range(0, len(vectors), step)]
        found = [self._found(copy, scope, block, k) for block in blocks or [vectors]]
        return self._answer(copy, _stacked(found), k)

    def _search_photos(self, photos: Any, k: int, where: str | None, skip_damaged: bool) -> pa.Table:
        from cnnbatch.index.photos import embed_photos

        queries = embed_photos(self.uri, self.manifest, photos)
        found = self.search(queries.vectors, k, where, skip_damaged)
        places = queries.rows.take(found["query"].combine_chunks())
        for number, name in enumerate(("id", "key", "box"), 1):
            found = found.add_column(number, f"query_{name}", places[name])
        return found

    def copy(self, skip_damaged: bool = False) -> LocalCopy:
        """Return this machine's copy of the index, in its present state."""
        return self._copy(skip_damaged)

    def duplicates(
        self, similarity: float = 0.95, advance: Callable[[int], None] = lambda rows: None
    ) -> pa.Table:
        """Return the rows that are connected with others by a cosine of at least ``similarity``, by group.

        The columns are ``group``, from 0; those of a row, as `search` has them; and ``similarity``, the
        cosine with the first row of the group. ``advance`` is called with each number of rows that are done.
        Raises UserError.
        """
        if not 0 < similarity <= 1:
            raise UserError(f"similarity: expected a cosine above 0 and at most 1, got {similarity:g}")
        copy = self.copy()
        return grouped_rows(
            copy.vectors, copy.live, similarity, lambda rows: self.addressed(copy.rows(rows)), advance
        )

    def named(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the rows with these ids, as `search` gives them, of ids that one row alone has."""
        copy = self.copy()
        places = np.flatnonzero(pc.is_in(copy.columns(["id"])["id"], pa.array(ids, pa.string())).to_numpy())
        rows = self.addressed(copy.rows(np.intersect1d(places, copy.live))).to_pylist()
        counts = Counter(row["id"] for row in rows)
        return {row["id"]: row for row in rows if counts[row["id"]] == 1}

    def columns(self) -> pa.Schema:
        """Return the columns that ``where`` may name."""
        return _columns(self._copy(False), self.manifest)

    def rows(self, where: str | None) -> NDArray[np.int64]:
        """Return the rows of the copy that are searched, ascending; with ``where`` those that fulfil it."""
        return self._rows(self.copy(), where)

    def addressed(self, rows: pa.Table) -> pa.Table:
        """Return rows with the address of their output in place of its number."""
        addresses = pa.array([one.url for one in self.manifest.outputs], pa.string())
        number = rows.column_names.index("output")
        return rows.set_column(number, "output", addresses.take(rows["output"].combine_chunks()))

    def damaged(self) -> Sequence[str]:
        """Return what is wrong with each segment that a search with ``skip_damaged`` leaves out."""
        return self._copy(True).damaged

    @cached_property
    def codebook(self) -> Codebook | None:
        """The codebook; None where the index is searched exactly."""
        return read_codebook(self.uri, self._storage, self.manifest)

    def _copy(self, skip_damaged: bool) -> LocalCopy:
        if skip_damaged not in self._copies:
            try:
                copy = local_copy(self.uri, self._storage, self.manifest, skip_damaged)
            except DamagedObject:
                if not self.refresh():  # Else the object went with the state that named it.
                    raise
                copy = local_copy(self.uri, self._storage, self.manifest, skip_damaged)
            self._copies = {skip_damaged: copy}
            self._scopes.clear()
        if not self._copies[skip_damaged].tables:
            raise UserError(f"{redact(self.uri)} has no embeddings that could be searched")
        return self._copies[skip_damaged]

    def _scope(self, copy: LocalCopy, where: str | None) -> _Scope:
        """Return what is searched; that of all rows is kept, and that of the last condition."""
        if where not in self._scopes:
            rows = self._rows(copy, where)
            self._scopes = {one: kept for one, kept in self._scopes.items() if one is None}
            self._scopes[where] = self._scope_of(copy, rows)
        return self._scopes[where]

    def _rows(self, copy: LocalCopy, where: str | None) -> NDArray[np.int64]:
        if where is None:
            return copy.live
        return _fulfilling(copy, parse_where(where, _columns(copy, self.manifest)))

    def _scope_of(self, copy: LocalCopy, rows: NDArray[np.int64]) -> _Scope:
        book = self.codebook
        if book is not None and copy.codes is not None and len(rows) >= self.manifest.exact_below:
            scan = FastScan(book, copy.codes, _all_or(rows, copy), self.manifest.probes)
            return _Scope(rows, scan)
        if 4 * len(rows) * self.manifest.dimensions <= _HELD_BYTES:
            return _Scope(rows, vectors=np.asarray(copy.vectors[rows], np.float32))
        return _Scope(rows)

    def _found(self, copy: LocalCopy, scope: _Scope, vectors: NDArray[np.float32], k: int) -> Found:
        """Return the ``k`` best rows of each query, and a few more."""
        if scope.scan is not None:
            return search_approximately(vectors, scope.scan, copy.vectors, k, self.manifest.refine, _SPARE)
        if scope.vectors is not None:
            _, places = search_exactly(vectors, scope.vectors, k + _SPARE)
            rows = np.where(places < 0, -1, np.append(scope.rows, -1)[places])
        else:
            _, rows = search_exactly(vectors, copy.vectors, k + _SPARE, _all_or(scope.rows, copy))
        return ranked(vectors, copy.vectors, rows)

    def _answer(self, copy: LocalCopy, found: Found, k: int) -> pa.Table:
        """Return the answers: of each query the most similar first, equal ones by their output and id."""
        scores, rows = in_order(found, copy)
        scores, rows = scores[:, :k], rows[:, :k]
        queries, places = np.nonzero(rows >= 0)
        structs = copy.structs(rows[queries, places])
        schema, output = _answer_schema(structs.type)
        arrays = structs.flatten()
        urls = [one.url for one in self.manifest.outputs]
        arrays[output] = pa.array([urls[number] for number in arrays[output].to_pylist()], pa.string())
        numbers = [pa.array(one, pa.int32()) for one in (queries, places + 1)]
        return pa.Table.from_arrays([*numbers, *arrays, pa.array(scores[queries, places])], schema=schema)


def is_index(uri: str, storage: Storage) -> bool:
    """Say whether there is an index at an address."""
    return storage.exists(join(normalize(uri), NAME))


def open_index(uri: str, storage: Storage | Mapping[str, Any] | None = None) -> Index:
    """Open the index at ``uri``; ``storage`` may be options. Raises UserError where there is none."""
    if storage is None or isinstance(storage, Mapping):
        storage = Storage(StorageOptions(**(storage or {})))
    uri = normalize(uri)
    return Index(uri, storage, *_require(uri, storage))


def _require(uri: str, storage: Storage) -> tuple[Manifest, str]:
    found = read_manifest(uri, storage)
    if found is None:
        raise UserError(
            f"expected an index (manifest.json) at {redact(uri)}; found none\n"
            "  what to do: build it with cnnbatch run index input=OUT output=INDEX"
        )
    return found


def _are_photos(queries: Any) -> bool:
    if isinstance(queries, str | Path):
        return True
    return isinstance(queries, list | tuple) and bool(queries) and isinstance(queries[0], str | Path)


def unit_queries(queries: Any, dimensions: int) -> NDArray[np.float32]:
    """Return queries as vectors (Q, D) of length 1; raises UserError for what is no vector."""
    try:
        vectors = np.atleast_2d(np.asarray(queries, np.float64))
    except (ValueError, TypeError):
        raise UserError("expected vectors, an array (Q, D) of numbers, or paths of photos") from None
    if vectors.ndim != 2 or vectors.shape[1] != dimensions:
        raise UserError(
            f"expected vectors of {dimensions} numbers, as the index has them, got an array of the shape "
            f"{vectors.shape}\n  what to do: embed the queries with the network of the index"
        )
    lengths = np.sqrt(np.einsum("qd,qd->q", vectors, vectors))
    good = np.isfinite(lengths) & (lengths > 0)
    if not good.all():
        bad = np.flatnonzero(~good)
        raise UserError(
            f"query {bad[0]}: expected a vector of finite numbers, not all of them zero\n"
            "  what to do: leave it out"
        )
    return np.asarray(vectors / lengths[:, None], np.float32)


def in_order(found: Found, copy: LocalCopy) -> Found:
    """Return what was found, equally similar rows (which are next to each other) by their output and id."""
    scores, rows = found
    equal = (scores[:, 1:] == scores[:, :-1]) & (rows[:, 1:] >= 0)
    for query in np.flatnonzero(equal.any(axis=1)):
        count = int((rows[query] >= 0).sum())
        names = copy.rows(rows[query, :count]).select(["output", "id"]).to_pylist()
        keys = [(-score, one["output"], one["id"]) for score, one in zip(scores[query], names, strict=False)]
        order = sorted(range(count), key=keys.__getitem__)
        rows[query, :count] = rows[query, order]
    return scores, rows


def _stacked(found: Sequence[Found]) -> Found:
    """Return what was found for some queries after the other; fewer columns are filled up."""
    if len(found) == 1:
        return found[0]
    width = max(rows.shape[1] for _, rows in found)
    scores = [np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one, _ in found]
    rows = [np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=-1) for _, one in found]
    return np.concatenate(scores), np.concatenate(rows)


@lru_cache(4)
def _answer_schema(rows: Any) -> tuple[pa.Schema, int]:
    """Return the columns of an answer, by the struct of rows of a copy, and which of these is the output."""
    fields = [*rows]
    output = rows.get_field_index("output")
    fields[output] = pa.field("output", pa.string())
    similarity = pa.field("similarity", pa.float32())
    return pa.schema([("query", pa.int32()), ("rank", pa.int32()), *fields, similarity]), output


def _columns(copy: LocalCopy, manifest: Manifest) -> pa.Schema:
    """Return the columns on which there may be conditions."""
    return pa.schema([copy.tables[0].schema.field(name) for name in ("id", "key", *manifest.kept)])


def _all_or(rows: NDArray[np.int64], copy: LocalCopy) -> NDArray[np.int64] | None:
    """Return None where the rows are all that there are, which needs no copy of their codes."""
    return None if len(rows) == len(copy.vectors) else rows


def _fulfilling(copy: LocalCopy, condition: Condition) -> NDArray[np.int64]:
    """Return the live rows that fulfil a condition."""
    table = copy.columns(condition.columns)
    numbers = table.append_column(_NUMBER, pa.array(np.arange(table.num_rows)))
    found = numbers.filter(condition.expression)[_NUMBER].to_numpy()
    return np.intersect1d(found, copy.live, assume_unique=True)
