"""Reads an output folder back, part by part, with neither torch nor Ray.

Footers are read once, in parallel, and remembered; rows never are, so that a result of forty
million images opens as fast as its footers, and one of eight at once.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.output import integrity
from cnnbatch.output.folder import READERS, Output, read_footer
from cnnbatch.output.forgotten_rows import are_forgotten
from cnnbatch.output.plan_pages import Changes, Listing, listings_of
from cnnbatch.storage import NotFound, Storage, StorageOptions, normalize, redact
from cnnbatch.types import ImageRef, Receipt

if TYPE_CHECKING:
    import pandas

    from cnnbatch.output.evaluation import Evaluation

ROWS_IN_A_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Footer:
    """What one finished part says of itself.

    ``part`` is its URI, ``keys`` its least and greatest key where Parquet kept them; ``started``
    and ``finished`` have a time zone; ``info`` is the footer as it was written.
    """

    part: str
    rows: int
    receipt: Receipt
    started: datetime | None
    finished: datetime | None
    keys: tuple[str, str] | None
    info: Mapping[str, Any]


class Reader:
    """One output folder, read-only; as `cnnbatch.open` gives it, it also shows its images."""

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = normalize(uri)
        self._storage = storage
        self._output = Output(self.uri, storage)
        self._is_known_version = False

    def __len__(self) -> int:
        """Return the number of rows, which is the number of images finished so far."""
        return sum(footer.rows for footer in self._footers)

    def __repr__(self) -> str:
        """Return a line with the counts."""
        images, failed, parts = len(self), self.failures().total(), len(self._parts)
        counts = f"{images:,} images, {failed:,} failed, {parts:,} parts"
        return f"<{type(self).__name__} {redact(self.uri)}: {counts}>"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The job as it was resolved, from ``_job/job.yaml``; empty where that is missing."""
        self._require_known_version()
        uri = self._output.path("_job", "job.yaml")
        try:
            return integrity.job(uri, self._storage.read(uri))
        except NotFound:
            return {}

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the predictions, without metadata. Raises UserError before the first part."""
        if not self._parts:
            raise UserError(
                f"expected a finished part in {redact(self._output.path('predictions'))}, but found none.\n"
                "  what to do: let the run go on until its first part is written"
            )
        with (
            self._storage.open(self._parts[0]) as file,
            integrity.reading(self._parts[0], integrity.MAKE_AGAIN),
        ):
            return _as_read(pq.read_schema(file))

    def receipts(self) -> list[Footer]:
        """Return what every finished part says of itself, in order."""
        return list(self._footers)

    def runs(self) -> list[dict[str, Any]]:
        """Return what every run that predicted something left of itself, the oldest first."""
        records = self._output.runs()
        return sorted(records, key=lambda record: str(record["started"]))

    def evaluation(self) -> Evaluation | None:
        """Return what the output is worth by its truth; None where it was not judged."""
        from cnnbatch.output.evaluation import read_evaluation

        return read_evaluation(self.uri, self._storage)

    def failures(self) -> Counter[str]:
        """Return how many images failed by each code, from the receipts."""
        return sum((Counter(footer.receipt.failed) for footer in self._footers), Counter[str]())

    def batches(
        self, columns: Sequence[str] | None = None, part: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, or those of the ``part``-th part, a bounded number at a time.

        ``columns`` are read, in this order; None: all. Raises UserError for an unknown one.
        """
        names = self.names(columns)
        for uri in self._parts if part is None else [self._parts[part]]:
            with self._storage.open(uri) as file:
                for batch in pq.ParquetFile(file).iter_batches(ROWS_IN_A_BATCH, columns=names):
                    found = batch.select(names)
                    yield pa.RecordBatch.from_arrays(found.columns, schema=_as_read(found.schema))

    def arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows as one table; `batches` is for what doesn't fit in memory."""
        return self._table(self.batches(columns), columns)

    def pandas(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """Return all rows as a data frame. Raises UserError where pandas is not installed."""
        try:
            import pandas  # noqa: F401
        except ImportError:
            raise UserError(
                "pandas is not installed.\n  what to do: pip install pandas, or use .arrow()"
            ) from None
        return self.arrow(columns).to_pandas()

    def failed(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of the images that failed; only parts that have some are read.

        What was forgotten is no failure.
        """
        return self._table(self.failed_batches(columns), columns)

    def failed_batches(
        self, columns: Sequence[str] | None = None, shards: Collection[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the images that failed, a bounded number at a time, or those of some shards."""
        names = self.names(columns)
        wanted = names if "error" in names else [*names, "error"]
        for index, footer in enumerate(self._footers):
            if _may_have_failures(footer) and (shards is None or footer.receipt.shard in shards):
                for batch in self.batches(wanted, index):
                    failed = np.asarray(pc.is_valid(batch["error"])) & ~are_forgotten(batch["error"])
                    yield batch.filter(pa.array(failed)).select(names)

    def row(self, key: str) -> dict[str, Any]:
        """Return the row of the image ``key``. Raises UserError where there is none."""
        part, row = self.place(key)
        return self.take(part, [row])[0]

    def place(self, key: str) -> tuple[int, int]:
        """Return the part and the row of the image ``key``."""
        for index, footer in enumerate(self._footers):
            if footer.keys and not footer.keys[0] <= key <= footer.keys[1]:
                continue
            start = 0
            for batch in self.batches(["key"], index):
                if (found := pc.index(batch["key"], key).as_py()) >= 0:
                    return index, start + found
                start += batch.num_rows
        raise UserError(
            f"{redact(self.uri)} has no image with the key {key!r}.\n"
            "  what to do: take one of .arrow(['key']); keys are paths relative to the input's root"
        )

    def take(
        self, part: int, rows: Sequence[int], columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return single rows of the ``part``-th part, in the order asked; reads only their row groups."""
        names = self.names(columns)
        with self._storage.open(self._parts[part]) as file:
            found = rows_at(pq.ParquetFile(file), rows, names)
        return [found[row] for row in rows]

    def refs(self, part: int, rows: Sequence[int]) -> list[ImageRef | None]:
        """Return where the images of single rows of the ``part``-th part lie; None where no plan tells."""
        return self.refs_of_shard(self._footers[part].receipt.shard, rows)

    def refs_of_shard(self, index: int, rows: Sequence[int]) -> list[ImageRef | None]:
        """Return where the images of single rows of a shard, by its number, lie.

        None where no plan tells, and where an image was forgotten.
        """
        if self.pictures is not self:
            return self.pictures.refs_of_shard(index, rows)
        for listing, number, first, last in self._plan:
            if first <= index <= last:
                shard = self._changes.apply(listing.read(number, [index])[0])
                found = [shard.refs[row] for row in rows]
                return [None if ref.is_forgotten else ref for ref in found]
        return [None] * len(rows)

    @property
    def storage(self) -> Storage:
        """What the output is read through."""
        return self._storage

    def input_storage(self) -> Storage:
        """Return the storage that the job's images are read from."""
        settings = self.pictures.settings.get("input")
        options = settings.get("storage") if isinstance(settings, dict) else None
        with integrity.reading(self._output.path("_job", "job.yaml")):
            return Storage(StorageOptions(**options)) if options else Storage()

    @cached_property
    def pictures(self) -> Reader:
        """The output whose job read the images: this one, or that whose embeddings its rows answer about."""
        kept = self._output.decided("embedded")
        if kept is None:
            return self
        return Reader(kept["url"], Storage(StorageOptions(**kept["storage"])))

    @cached_property
    def _plan(self) -> list[tuple[Listing, int, int, int]]:
        """The pages of the plan: the listing, the number there, the first and the last shard."""
        return [
            (listing, number, first, last)
            for listing in listings_of(self._output)
            for number, (_, first, last) in enumerate(listing.summaries())
        ]

    @cached_property
    def _changes(self) -> Changes:
        return Changes([one for one in listings_of(self._output) if one.complete() is not None])

    def _require_known_version(self) -> None:
        """Refuse an output of a newer version before anything else of it is read; raises UserError."""
        if not self._is_known_version:
            self._output.require_known_version()
            self._is_known_version = True

    @cached_property
    def _parts(self) -> list[str]:
        self._require_known_version()
        return [self._output.part(index) for index in sorted(self._output.finished())]

    @cached_property
    def _footers(self) -> list[Footer]:
        if len(self._parts) < 2:
            return [self._footer(part) for part in self._parts]
        with ThreadPoolExecutor(READERS, thread_name_prefix="footers") as pool:
            return list(pool.map(self._footer, self._parts))

    def _footer(self, part: str) -> Footer:
        with integrity.reading(part, integrity.MAKE_AGAIN):
            metadata, info = read_footer(self._storage, part)
            receipt = info.get("receipt") or {}
            return Footer(
                part=part,
                rows=metadata.num_rows,
                receipt=Receipt(
                    shard=receipt.get("shard", -1),
                    rows=receipt.get("rows", metadata.num_rows),
                    predicted=receipt.get("predicted", metadata.num_rows),
                    failed=dict(receipt.get("failed") or {}),
                    seconds=dict(receipt.get("seconds") or {}),
                ),
                started=_time(info.get("started")),
                finished=_time(info.get("finished")),
                keys=_key_range(metadata),
                info=info,
            )

    def names(self, columns: Sequence[str] | None) -> list[str]:
        """Return these columns, or all of them. Raises UserError for one that the predictions lack."""
        known = self.schema.names
        if columns is None:
            return known
        for name in columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(known)}"
                raise UserError(f"{redact(self.uri)} has no column {name!r}.\n  what to do: {hint}")
        return list(columns)

    def _table(self, batches: Iterator[pa.RecordBatch], columns: Sequence[str] | None) -> pa.Table:
        schema = pa.schema([self.schema.field(name) for name in self.names(columns)])
        return pa.Table.from_batches(batches, schema=schema)


def rows_at(
    file: pq.ParquetFile, rows: Sequence[int], columns: Sequence[str] | None = None
) -> dict[int, dict[str, Any]]:
    """Return single rows of a file by their numbers; reads only their row groups, and these ``columns``."""
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if inside := [row for row in rows if start <= row < end]:
            names = None if columns is None else list(columns)
            table = file.read_row_group(group, columns=names).take([row - start for row in inside])
            found |= zip(inside, table.to_pylist(), strict=True)
        start = end
    return found


Kind = TypeVar("Kind", bound=Reader)


def open_output(uri: str, storage: Storage | Mapping[str, Any] | None = None) -> Reader:
    """Open the output folder at ``uri``; ``storage`` may be options. Raises UserError where there is none."""
    return open_as(Reader, uri, storage)


def open_as(kind: type[Kind], uri: str, storage: Storage | Mapping[str, Any] | None) -> Kind:
    """Open an output folder as `open_output`, for a ``kind`` of reader."""
    if storage is None or isinstance(storage, Mapping):
        storage = Storage(StorageOptions(**(storage or {})))
    found = kind(uri, storage)
    if not found._parts and not found.settings:
        raise UserError(
            f"expected an output of a job (predictions/part-*.parquet) at {redact(found.uri)}; found none.\n"
            "  what to do: give the folder that a job named as its output"
        )
    return found


def _as_read(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a part as those of every part, also one of an earlier version, are read."""
    place = schema.get_field_index("uri")
    if place >= 0:
        schema = schema.set(place, schema.field(place).with_nullable(True))
    return schema.remove_metadata()


def _may_have_failures(footer: Footer) -> bool:
    return "receipt" not in footer.info or any(footer.receipt.failed.values())


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _key_range(metadata: pq.FileMetaData) -> tuple[str, str] | None:
    """Return the least and greatest key of a part, as Parquet's statistics have them."""
    position = metadata.schema.names.index("key") if "key" in metadata.schema.names else -1
    groups = range(metadata.num_row_groups) if position >= 0 else range(0)
    found = [metadata.row_group(group).column(position).statistics for group in groups]
    ranges: list[Any] = [(one.min, one.max) for one in found if one is not None and one.has_min_max]
    if not ranges or len(ranges) < len(found) or not isinstance(ranges[0][0], str):
        return None
    return min(low for low, _ in ranges), max(high for _, high in ranges)
