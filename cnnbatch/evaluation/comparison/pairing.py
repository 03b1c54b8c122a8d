"""Reads two outputs side by side, rows of one key together, whatever the order and the size of their parts.

As long as keys come in one order, both are read once and nothing is kept; from the first batch on where
they don't, the rest of the second output waits on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.output import integrity
from cnnbatch.output.folder import PART, Output
from cnnbatch.output.reader import ROWS_IN_A_BATCH, Footer, Reader, open_output
from cnnbatch.storage import NotFound, Storage, join
from cnnbatch.storage.scratch import on_disk, scratch
from cnnbatch.truth import BOX

OBJECTS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", BOX)]))
_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "uri": pa.string(),
    "etag": pa.string(),
    "code": pa.string(),
    "label": pa.string(),
    "score": pa.float32(),
    "objects": OBJECTS,
    "truth": pa.bool_(),
    "part": pa.int64(),
    "row": pa.int64(),
}
ROWS = pa.schema(_COLUMNS)
"""What is compared of an image: ``code`` is why it failed, ``truth`` whether it has one."""

NOTHING = "no prediction"
"""The code of an image that has neither an error nor a prediction."""

_READ = {
    "label": ["key", "uri", "etag", "error.code", "label", "score"],
    "objects": ["key", "uri", "etag", "error.code", "objects.label", "objects.score", "objects.box"],
}
"""By what is compared, the columns and fields that are read: masks and embeddings stay where they are."""

_TABLES = "CREATE TABLE rows (key TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;"
_CACHE_KB = 64_000


@dataclass(frozen=True)
class Side:
    """One of two outputs.

    ``truth`` is the folder of the truth that it is judged by, None where it has none; ``aliases`` are the
    model's names of the truth's classes, None: the job's.
    """

    result: Reader
    storage: Storage
    truth: str | None
    aliases: Mapping[str, str | None] | None = None

    @cached_property
    def parts(self) -> dict[int, Footer]:
        """The finished parts by the number of their shard."""
        return {_shard(footer): footer for footer in self.result.receipts()}

    def compares(self) -> list[str]:
        """Return which of ``objects`` (with boxes) and ``label`` this output has."""
        schema = self.result.schema
        objects = "objects" in schema.names and {"label", "box"} <= _fields(schema.field("objects").type)
        return [name for name, there in (("objects", objects), ("label", "label" in schema.names)) if there]

    def rows(self, what: str, least: float) -> Iterator[pa.RecordBatch]:
        """Yield `ROWS` in order, with the column ``what``, without objects that score below ``least``."""
        for index, footer in self.parts.items():
            known, start = self._known(index, footer.rows), 0
            with self.storage.open(footer.part) as file:
                parquet = pq.ParquetFile(file)
                for batch in parquet.iter_batches(ROWS_IN_A_BATCH, columns=_leaves(parquet, _READ[what])):
                    end = start + batch.num_rows
                    place = {
                        "truth": pa.array(known[start:end]),
                        "part": pa.array(np.full(batch.num_rows, index)),
                        "row": pa.array(np.arange(start, end)),
                    }
                    yield _rows(batch, what, least, place)
                    start = end

    def _known(self, index: int, rows: int) -> NDArray[np.bool_]:
        """Return which images of a part have a truth, (rows,)."""
        if self.truth is None:
            return np.zeros(rows, np.bool_)
        uri = join(self.truth, f"part-{index:08}.parquet")
        with self.storage.open(uri) as file, integrity.reading(uri):
            parquet = pq.ParquetFile(file)
            name = "objects" if "objects" in parquet.schema_arrow.names else "label"
            leaves = _leaves(parquet, ["objects.label", "label"])
            known: NDArray[np.bool_] = parquet.read(leaves)[name].is_valid().to_numpy()
            if len(known) != rows:
                raise ValueError(f"expected {rows:,} rows, as its part has, got {len(known):,}")
        return known


def open_side(uri: str, storage: Storage) -> Side:
    """Open an output. Raises UserError where there is none, or none of its parts is finished."""
    result = open_output(uri, storage)
    result.schema  # noqa: B018 - raises before the first part
    output = Output(result.uri, storage)
    judged = _judged_by(output)
    # Its folder may have moved since.
    again = str(judged.get("truth")).endswith("/evaluation/truth")
    return Side(result, storage, _truth(output, result, again), judged.get("aliases"))


def _judged_by(output: Output) -> dict[str, Any]:
    """Return by what an output was last judged; nothing where it was not."""
    uri = output.path("evaluation.json")
    try:
        return integrity.record("judged by", uri, output.storage.read(uri))
    except NotFound:
        return {}


def _truth(output: Output, result: Reader, again: bool) -> str | None:
    """Return the folder of the truth that an output was last judged by, else its job's, where it is whole."""
    folder = output.path("evaluation" if again else "_job", "truth")
    try:
        there = {found[0] for entry in output.storage.list(folder) if (found := PART.search(entry.uri))}
    except NotFound:
        return None
    wanted = {f"part-{_shard(footer):08}.parquet" for footer in result.receipts()}
    return folder if wanted <= there else None


class Joined:
    """Pairs of batches with the same keys in the same order, from two streams whose keys are unique.

    ``only_a`` and ``only_b`` count the rows without a partner, once all pairs were taken.
    """

    def __init__(self, a: Iterable[pa.RecordBatch], b: Iterable[pa.RecordBatch]) -> None:
        self.only_a = self.only_b = 0
        self._a, self._b = _Stream(a), _Stream(b)

    def __iter__(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        a, b = self._a, self._b
        while count := min(a.ready(), b.ready()):
            first, second = a.head(count), b.head(count)
            if not first["key"].equals(second["key"]):
                break
            yield first, second
            a.skip(count)
            b.skip(count)
        if a.ready() and b.ready():
            yield from self._by_key()
        else:
            self.only_a, self.only_b = (sum(batch.num_rows for batch in one.rest()) for one in (a, b))

    def _by_key(self) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        waiting = _Waiting(self._b.rest())
        self.only_b = waiting.count
        for batch in self._a.rest():
            found = waiting.rows(batch["key"].to_pylist())
            both = [place for place, row in enumerate(found) if row is not None]
            self.only_a += batch.num_rows - len(both)
            self.only_b -= len(both)
            if both:
                yield batch.take(pa.array(both)), waiting.batch([found[place] for place in both])


class _Stream:
    """A stream of batches from whose head any number of rows is taken."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = (batch for batch in batches if batch.num_rows)
        self._batch: pa.RecordBatch | None = None
        self._start = 0

    def ready(self) -> int:
        """Return how many rows can be taken at once; 0 at the end."""
        if self._batch is None or self._start == self._batch.num_rows:
            self._batch, self._start = next(self._batches, None), 0
        return 0 if self._batch is None else self._batch.num_rows - self._start

    def head(self, count: int) -> pa.RecordBatch:
        assert self._batch is not None
        return self._batch.slice(self._start, count)

    def skip(self, count: int) -> None:
        self._start += count

    def rest(self) -> Iterator[pa.RecordBatch]:
        count = self.ready()
        return chain([self.head(count)] if count else [], self._batches)


class _Waiting:
    """Rows by their key, on disk, as JSON: of objects only those that count, so that they are few."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._base = scratch(self, _TABLES, _CACHE_KB)
        self._schema: pa.Schema | None = None
        with on_disk("the rows of the second output"):
            for batch in batches:
                self._schema = batch.schema
                rows = [(row["key"], json.dumps(row)) for row in batch.to_pylist()]
                self._base.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows)
        self.count: int = self._base.execute("SELECT count(*) FROM rows").fetchone()[0]

    def rows(self, keys: Sequence[Any]) -> list[str | None]:
        """Return the row of each key as it is kept, None where there is none."""
        found = (self._base.execute("SELECT row FROM rows WHERE key = ?", [key]).fetchone() for key in keys)
        return [one[0] if one else None for one in found]

    def batch(self, rows: Iterable[Any]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([json.loads(row) for row in rows], self._schema)


def _shard(footer: Footer) -> int:
    found = PART.search(footer.part)
    assert found is not None
    return int(found[1])


def _fields(type: Any) -> set[str]:
    """Return the fields that a list has for each element."""
    inner = type.value_type if pa.types.is_list(type) or pa.types.is_large_list(type) else type
    return {inner.field(place).name for place in range(inner.num_fields)}


def _leaves(parquet: pq.ParquetFile, wanted: Sequence[str]) -> list[str]:
    """Return Parquet's own names of some columns and fields, without the levels that lists have there."""
    paths = [parquet.schema.column(place).path for place in range(len(parquet.schema))]
    plain = {path: path.replace(".list.element", "").replace(".list.item", "") for path in paths}
    return [
        path for path in paths for name in wanted if plain[path] == name or plain[path].startswith(f"{name}.")
    ]


def _rows(batch: pa.RecordBatch, what: str, least: float, place: Mapping[str, Any]) -> pa.RecordBatch:
    """Return a batch of a part as `ROWS`; what failed has a code and nothing that was predicted."""
    value: Any = batch[what]
    nothing = pc.if_else(value.is_null(), NOTHING, pa.scalar(None, pa.string()))
    code: Any = pc.coalesce(pc.struct_field(batch["error"], "code"), nothing)
    value = pc.if_else(code.is_valid(), pa.scalar(None, value.type), value)
    columns = {name: batch[name] for name in batch.schema.names if name in ROWS.names}
    columns |= {"code": code, what: _sure(value, least) if what == "objects" else value, **place}
    count = batch.num_rows
    arrays = [
        _cast(columns[one.name], one.type) if one.name in columns else pa.nulls(count, one.type)
        for one in ROWS
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)


def _sure(lists: Any, least: float) -> Any:
    """Return objects as `OBJECTS`, without those that score below ``least``; those without a score count."""
    flat: Any = pc.list_flatten(lists)
    count, known = len(flat), _fields(lists.type)
    fields = [
        _cast(pc.struct_field(flat, one.name), one.type) if one.name in known else pa.nulls(count, one.type)
        for one in OBJECTS.value_type
    ]
    # In the scores' own precision: one that is written as 0.9 is not below 0.9.
    kept = pc.fill_null(pc.greater_equal(fields[1], pa.scalar(least, pa.float32())), True)
    parents: Any = pc.list_parent_indices(lists).filter(kept)
    ends = np.cumsum(np.bincount(parents.to_numpy(zero_copy_only=False), minlength=len(lists)))
    objects = pa.StructArray.from_arrays(fields, fields=list(OBJECTS.value_type)).filter(kept)
    offsets: Any = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, objects, mask=lists.is_null())


def _cast(column: Any, type: pa.DataType) -> Any:
    return column if column.type == type else column.cast(type)
