"""Reads two outputs side by side, rows of one key together, whatever the order and the size of their parts.

As long as keys come in one order, both are read once and nothing is kept; from the first batch on where
they don't, the rest of the second output waits on disk.
"""

from __future__ import annotations

import base64
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

from cnnbatch.evaluation.comparison.measure import Measure, as_type
from cnnbatch.output import integrity
from cnnbatch.output.folder import PART, Output
from cnnbatch.output.forgotten import require_whole
from cnnbatch.output.forgotten_rows import are_forgotten
from cnnbatch.output.reader import Footer, Reader, open_output
from cnnbatch.storage import NotFound, Storage, join
from cnnbatch.storage.scratch import on_disk, scratch
from cnnbatch.truth import answer_of

_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("key", pa.string()),
    ("uri", pa.string()),
    ("etag", pa.string()),
    ("code", pa.string()),
    ("truth", pa.bool_()),
    ("part", pa.int64()),
    ("row", pa.int64()),
]
_READ = ("key", "uri", "etag", "error.code")

NOTHING = "no prediction"
"""The code of an image that has neither an error nor a prediction."""

_TABLES = "CREATE TABLE rows (key TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;"
_CACHE_KB = 64_000
_BYTES = "base64 of bytes"


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

    def rows(self, measure: Measure) -> Iterator[pa.RecordBatch]:
        """Yield what is compared of each image, as `row_schema` says, in order."""
        wanted = [*_READ, *(measure.leaves or measure.columns)]
        for index, footer in self.parts.items():
            known, start = self._known(index, footer.rows), 0
            with self.storage.open(footer.part) as file:
                parquet = pq.ParquetFile(file)
                for batch in parquet.iter_batches(measure.at_once, columns=_leaves(parquet, wanted)):
                    end = start + batch.num_rows
                    place = {
                        "truth": pa.array(known[start:end]),
                        "part": pa.array(np.full(batch.num_rows, index)),
                        "row": pa.array(np.arange(start, end)),
                    }
                    kept: Any = pa.array(~are_forgotten(batch["error"]))
                    yield _rows(batch, measure, place).filter(kept)
                    start = end

    def _known(self, index: int, rows: int) -> NDArray[np.bool_]:
        """Return which images of a part have a truth, (rows,)."""
        if self.truth is None:
            return np.zeros(rows, np.bool_)
        uri = join(self.truth, f"part-{index:08}.parquet")
        with self.storage.open(uri) as file, integrity.reading(uri):
            parquet = pq.ParquetFile(file)
            kind = answer_of(parquet.schema_arrow)
            leaf = _leaves(parquet, [kind])[:1]  # The first of its fields tells whether there is a value.
            known: NDArray[np.bool_] = parquet.read(leaf)[kind].is_valid().to_numpy()
            if len(known) != rows:
                raise ValueError(f"expected {rows:,} rows, as its part has, got {len(known):,}")
        return known


def open_side(uri: str, storage: Storage) -> Side:
    """Open an output. Raises UserError where there is none, or none of its parts is finished."""
    result = open_output(uri, storage)
    result.schema  # noqa: B018 - raises before the first part
    output = Output(result.uri, storage)
    require_whole(output)
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
        waiting = _RowsOnDisk(self._b.rest())
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


class _RowsOnDisk:
    """Rows by their key, on disk, as JSON: of objects only those that count, so that they are few."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._base = scratch(self, _TABLES, _CACHE_KB)
        self._schema: pa.Schema | None = None
        with on_disk("the rows of the second output"):
            for batch in batches:
                self._schema = batch.schema
                rows = [(row["key"], json.dumps(row, default=_as_text)) for row in batch.to_pylist()]
                self._base.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows)
        self.count: int = self._base.execute("SELECT count(*) FROM rows").fetchone()[0]

    def rows(self, keys: Sequence[Any]) -> list[str | None]:
        """Return the row of each key as it is kept, None where there is none."""
        found = (self._base.execute("SELECT row FROM rows WHERE key = ?", [key]).fetchone() for key in keys)
        return [one[0] if one else None for one in found]

    def batch(self, rows: Iterable[Any]) -> pa.RecordBatch:
        found = [json.loads(row, object_hook=_as_bytes) for row in rows]
        return pa.RecordBatch.from_pylist(found, self._schema)


def _as_text(data: bytes) -> dict[str, str]:
    """Return bytes, which JSON has not, as a value that no column has."""
    return {_BYTES: base64.b64encode(data).decode()}


def _as_bytes(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[_BYTES]) if value.keys() == {_BYTES} else value


def _shard(footer: Footer) -> int:
    found = PART.search(footer.part)
    assert found is not None
    return int(found[1])


def _leaves(parquet: pq.ParquetFile, wanted: Sequence[str]) -> list[str]:
    """Return Parquet's own names of some columns and fields, without the levels that lists have there."""
    paths = [parquet.schema.column(place).path for place in range(len(parquet.schema))]
    plain = {path: path.replace(".list.element", "").replace(".list.item", "") for path in paths}
    return [
        path for path in paths for name in wanted if plain[path] == name or plain[path].startswith(f"{name}.")
    ]


def row_schema(measure: Measure) -> pa.Schema:
    """Return the columns of what is compared of an image.

    ``code`` is why it failed, ``truth`` whether it has one; the measure's own columns follow.
    """
    return pa.schema([*_COLUMNS, *measure.columns.items()])


def _rows(batch: pa.RecordBatch, measure: Measure, place: Mapping[str, Any]) -> pa.RecordBatch:
    """Return a batch of a part as `row_schema` says; what failed has a code and nothing predicted."""
    schema, value = row_schema(measure), batch[measure.kind]
    nothing: Any = pc.if_else(value.is_null(), NOTHING, pa.scalar(None, pa.string()))
    code: Any = pc.coalesce(pc.struct_field(batch["error"], "code"), nothing)
    value = pc.if_else(code.is_valid(), pa.scalar(None, value.type), value)
    columns: dict[str, Any] = {name: batch[name] for name in batch.schema.names if name in schema.names}
    columns |= {"code": code, measure.kind: measure.decode(value), **place}
    arrays = [
        as_type(columns[one.name], one.type) if one.name in columns else pa.nulls(batch.num_rows, one.type)
        for one in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
