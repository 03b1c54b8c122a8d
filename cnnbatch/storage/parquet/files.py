"""Parquet files as strangers write them: whatever is decoded was checked first, and fits in memory.

A footer is believed where the file's own size allows it, a page where its header does: so a damaged or
hostile file costs a message and no more memory than a large honest one. The limits are stated here.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage.parquet.pages import (
    DELTA_BYTE_ARRAY,
    DICTIONARY,
    FOOTER_BYTES,
    Chunk,
    Column,
    NoParquet,
    Page,
    RowGroup,
    Watched,
    read_footer,
)
from cnnbatch.storage.parquet.thrift_compact import Damaged, OverLimit

COLUMNS = 10_000
"""Columns that a file may have, each field of a struct counted."""

MOST_IN_LIST = 100_000
"""Row groups that a file may have, and anything else of which its footer has a list."""

ROWS_A_BYTE = 16
"""Rows that a file may have for each of its bytes."""

ROW_BYTES = 16 << 20
"""Bytes that one row may have beside its image."""

TEXT = 4096
"""Characters that one key or label may have."""

LISTED_BYTES = 512 << 20
"""Bytes that `LISTED_ROWS` rows, one behind the other, may have beside their images: a plan holds as many."""

LISTED_ROWS = 10_000

_VALUES = 1 << 26  # of a column of lists in one row group
_BATCH = 256 << 20  # bytes that the rows of a batch may take where they repeat cells of a page
_REPEATED = 4 << 30  # bytes that the values of a page of a column of lists may take where they repeat others
_AT_ONCE = 16 << 20  # bytes of Arrow's that become Python's objects at once
_TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


@dataclass(frozen=True, slots=True)
class PageLimits:
    """What a page may have of decompressed bytes, and one value of it in the mean."""

    page: int
    value: int


CELL_LIMITS = PageLimits(128 << 20, ROW_BYTES)
"""Of columns beside the images, and of all columns of a list."""


class _FewerRows(Exception):
    """So many rows are to be decoded at once, rather than more."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


@contextmanager
def as_user_error(where: str, mend: str = "fetch or write the file again") -> Iterator[None]:
    """Turn whatever a damaged or too large file raises into the user's mistake."""
    try:
        yield
    except OverLimit as error:
        raise UserError(
            f"{where}: {error}\n  what to do: write it with smaller cells or row groups"
        ) from None
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, RecursionError) as error:
        raise_if_disk(error, where)
        kind = "Parquet file" if isinstance(error, NoParquet) else "whole Parquet file"
        raise UserError(
            f"{where} is no {kind}: {str(error) or type(error).__name__}\n  what to do: {mend}"
        ) from None


def raise_if_disk(error: Exception, where: str) -> None:
    """Tell a failing disk or mount, whose errors have a number, from a damaged file."""
    if isinstance(error, OSError) and error.errno is not None:
        raise EnvironmentFault(f"{where}: {error.strerror}", "check that disk or mount") from None


class ParquetTable:
    """One open file, read in batches of rows, ``buffer`` bytes of a column at once.

    Making it and reading from it raises `OverLimit`, and what `as_user_error` knows for damage.
    """

    def __init__(self, file: BinaryIO, buffer: int) -> None:
        size = file.seek(0, os.SEEK_END)
        end, self._groups = read_footer(file, size)
        self._watched = Watched(file, size, end)
        self._open = partial(
            pq.ParquetFile,
            cast(BinaryIO, self._watched),
            buffer_size=buffer,
            pre_buffer=False,
            page_checksum_verification=True,
            thrift_string_size_limit=FOOTER_BYTES,
            thrift_container_size_limit=MOST_IN_LIST,
        )
        self._file = self._open()
        self._leaves = self._file.metadata.schema
        _check_counts(self._groups, len(self._leaves), size)
        if texts := self._texts_in_lists():  # one row may repeat them without end
            self._compact = self._open(metadata=self._file.metadata, read_dictionary=texts)
        else:
            self._compact = self._file
        self.starts = [0, *accumulate(group.rows for group in self._groups)]
        self.schema = self._file.schema_arrow
        self._listed = 0, 0

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return self.starts[-1]

    @property
    def groups(self) -> int:
        """How many row groups the file has."""
        return len(self._groups)

    def group_of(self, row: int) -> int:
        """Return the row group that holds a row."""
        return bisect_right(self.starts, row) - 1

    def rows_in(self, group: int) -> int:
        """Return how many rows a row group has."""
        return self._groups[group].rows

    def column(self, group: int, leaf: str) -> Column | None:
        """Return what the footer says of a column of plain values, where there is such a one."""
        found = self._numbers.get(leaf, [])
        return self._groups[group].columns[found[0]] if len(found) == 1 else None

    def is_empty(self, leaf: str) -> bool:
        """Say whether by the footer a column of plain values has rows and not one value."""
        columns = [column for group in range(self.groups) if (column := self.column(group, leaf))]
        return self.rows > 0 and all(column.nulls == column.values for column in columns)

    def require_rows(self, name: str) -> None:
        """Insist that a column has as many values as there are rows, by the footer."""
        for group in range(self.groups):
            if self.rows_in(group):
                self._chunks(group, [name], CELL_LIMITS, 1)

    def batches(
        self, group: int, names: Sequence[str], rows: int, limits: PageLimits = CELL_LIMITS
    ) -> Iterator[pa.RecordBatch]:
        """Stream the columns of these names or paths of a row group, at most ``rows`` rows at once."""
        done = 0
        while self.rows_in(group):
            try:
                for batch in self._decoded(group, names, rows, limits, done):
                    done += batch.num_rows
                    yield batch
                break
            except _FewerRows as fewer:
                rows = fewer.rows
        if done != self.rows_in(group):
            raise Damaged(f"row group {group} ends before its last row")

    def cells(self, group: int, names: Sequence[str], rows: int) -> Iterator[dict[str, Any]]:
        """Stream the rows of a row group as Python's values."""
        for batch in self.batches(group, names, rows):
            for piece, size in _pieces(batch):
                self._count(piece.num_rows, size)
                yield from piece.to_pylist()

    def _count(self, rows: int, size: int) -> None:
        """Count the bytes of rows that are listed, anew behind each `LISTED_ROWS`."""
        if self._listed[0] >= LISTED_ROWS:
            self._listed = 0, 0
        self._listed = self._listed[0] + rows, self._listed[1] + size
        if self._listed[1] > LISTED_BYTES:
            raise OverLimit(
                f"{self._listed[0]:,} rows have {self._listed[1]:,} bytes beside their images; at most "
                f"{LISTED_BYTES:,} are read of {LISTED_ROWS:,}"
            )

    def _decoded(
        self, group: int, names: Sequence[str], rows: int, limits: PageLimits, done: int
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows behind the first ``done``; raises `_FewerRows` where ``rows`` are too many."""
        self._watched.watch(self._chunks(group, names, limits, rows))
        batches = self._compact.iter_batches(rows, [group], list(names), use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except Exception:
                if self._watched.fault is not None:
                    raise self._watched.fault from None
                raise
            if batch is None:
                return
            if batch.num_rows > done:
                yield batch.slice(done)
            done = max(0, done - batch.num_rows)

    def _chunks(self, group: int, names: Sequence[str], limits: PageLimits, rows: int) -> list[Chunk]:
        numbers = sorted({number for name in names for number in self._numbers[name]})
        return [self._chunk(self._groups[group], number, limits, rows) for number in numbers]

    def _chunk(self, held: RowGroup, number: int, limits: PageLimits, rows: int) -> Chunk:
        """Return where a column's pages lie; how many values it has is checked."""
        column, leaf = held.columns[number], self._leaves.column(number)
        listed = bool(leaf.max_repetition_level)
        if not listed and column.values != held.rows:
            raise Damaged(f"the column {leaf.path} has {column.values:,} of {held.rows:,} values")
        if listed and column.values > _VALUES:
            raise OverLimit(f"column {leaf.path}: {column.values:,} values; at most {_VALUES:,} are read")
        about = _Checked(leaf.path, leaf.physical_type in _TEXTS, listed)
        return Chunk(column.start, column.end, partial(about.check, limits, rows))

    def _texts_in_lists(self) -> list[str]:
        leaves = map(self._leaves.column, range(len(self._leaves)))
        return [leaf.path for leaf in leaves if leaf.max_repetition_level and leaf.physical_type == _TEXTS[0]]

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        """The numbers of the columns of plain values by each path that names them or what they lie in."""
        found: dict[str, list[int]] = {}
        for number in range(len(self._leaves)):
            parts = self._leaves.column(number).path.split(".")
            for end in range(1, len(parts) + 1):
                found.setdefault(".".join(parts[:end]), []).append(number)
        return found


@dataclass(frozen=True, slots=True)
class _Checked:
    """One column of plain values: its path, whether they are of any length, whether they lie in lists."""

    path: str
    of_any_length: bool
    listed: bool

    def check(self, limits: PageLimits, rows: int, page: Page) -> None:
        """Raise `OverLimit` for a page, `_FewerRows` where its values repeat in too many rows."""
        if page.size > limits.page:
            raise OverLimit(
                f"column {self.path}: a page of {page.size:,} bytes; at most {limits.page:,} are read"
            )
        if page.values > _VALUES and (self.listed or page.kind == DICTIONARY):
            raise OverLimit(
                f"column {self.path}: a page of {page.values:,} values; at most {_VALUES:,} are read"
            )
        if not self.of_any_length or not page.size:
            return
        mean = page.size // max(1, page.values)
        if mean > limits.value:
            raise OverLimit(
                f"column {self.path}: values of {mean:,} bytes; at most {limits.value:,} are read"
            )
        if self.listed and page.encoding == DELTA_BYTE_ARRAY and page.size * page.values > _REPEATED:
            raise OverLimit(
                f"column {self.path}: {page.values:,} values that may repeat {page.size:,} bytes each"
            )
        if self.listed and page.kind == DICTIONARY:
            return  # it stays one
        repeats = page.kind == DICTIONARY or page.encoding == DELTA_BYTE_ARRAY
        fitting = max(1, _BATCH // max(1, page.size if repeats else mean))
        if fitting < rows:
            raise _FewerRows(fitting)


def _check_counts(groups: Sequence[RowGroup], columns: int, size: int) -> None:
    """Check what a footer claims against the limits and against the ``size`` of the file."""
    if columns > COLUMNS:
        raise OverLimit(f"{columns:,} columns; at most {COLUMNS:,} are read")
    rows = sum(group.rows for group in groups)
    if rows > size * ROWS_A_BYTE:
        raise Damaged(f"its footer claims {rows:,} rows, in a file of {size:,} bytes")
    if any(len(group.columns) != columns for group in groups):
        raise Damaged("its row groups have other columns than its schema")


def _pieces(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Cut rows into pieces that fit in memory as Python's objects; yield each with its bytes."""
    size = sum(_size(column) for column in batch.columns)
    if size <= _AT_ONCE:
        yield batch, size
    elif batch.num_rows == 1:
        raise OverLimit(f"a row has {size:,} bytes; at most {ROW_BYTES:,} are read")
    else:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half))
        yield from _pieces(batch.slice(half))


def _size(column: Any) -> int:
    """Return the bytes of a column as they are without dictionaries."""
    if isinstance(column, pa.DictionaryArray):
        return 4 * len(column) + _repeated_size(column)
    if isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return 8 * len(column) + _size(column.flatten())
    if isinstance(column, pa.StructArray):
        return 8 * len(column) + sum(map(_size, column.flatten()))
    return int(column.nbytes)


def _repeated_size(column: Any) -> int:
    """Return the bytes of the values that a dictionary stands for."""
    kind = column.dictionary.type
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        return 16 * len(column)
    lengths: Any = pc.binary_length(column.dictionary)
    return int(pc.sum(pc.take(lengths, column.indices)).as_py() or 0)
