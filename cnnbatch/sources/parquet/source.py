"""Parquet files with the images in them: a column of image files' bytes, and beside it truth and more.

A row group is read from its beginning, in batches of a few megabytes: so a giant one costs no memory, and
an image tried again alone costs the rows before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.sources.containers import Containers, Visit, find, opened, unreadable
from cnnbatch.sources.lists.source import LABEL
from cnnbatch.sources.objects import TRUTH, as_json, class_name, truth_table
from cnnbatch.sources.parquet.in_turn import read_in_turn
from cnnbatch.sources.parquet.schema import (
    EMBED,
    ParquetColumns,
    check_same,
    choose,
    has_numbers,
    holds_images,
    kept_type,
)
from cnnbatch.sources.reading import MAX_BYTES
from cnnbatch.storage import Entry, Forbidden, NotFound, Storage, TooLarge, Unreadable, join, parent, redact
from cnnbatch.storage.parquet.files import TEXT, PageLimits, ParquetTable, as_user_error, raise_if_disk
from cnnbatch.storage.parquet.thrift_compact import OverLimit
from cnnbatch.storage.text import decoded
from cnnbatch.storage.unique import unique_keys
from cnnbatch.types import Content, Failure, ImageRef, Row, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

SUFFIXES = (".parquet",)
KIND = "Parquet files"

_LISTED_ROWS = 4096  # rows without their images that are decoded at once
_LISTED_BUFFER = 1 << 20  # bytes of each column read ahead while listing
_BATCH_BYTES = 4 << 20  # bytes of images decoded at once, by the row group's mean
_BATCH_ROWS = 64  # and no more rows than this, for a mean says little of a column that repeats itself
_BUFFER = 4 << 20  # bytes of the image column in one request
_IMAGES = PageLimits(1 << 30, MAX_BYTES)  # a page as pyarrow writes it may hold a thousand images
_CLASSES_FILE = "classes.txt"
_CLASSES_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, LookupError, ValueError)


@dataclass(frozen=True)
class ParquetSource:
    """The rows of Parquet files, in the order of the files' names.

    An image's key is the key column, else ``FILE#ROW``. Whatever the rows say beside the image travels
    with its ref.
    """

    files: Containers
    names: ParquetColumns
    first: pa.Schema
    columns: pa.Schema
    truth_schema: pa.Schema | None

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images; a key that comes twice is a `UserError` with both places."""
        found = after is not None
        for ref in self._numbered(after) if self.names.key is None else self._keyed(after):
            found = True
            yield ref
        if not found:
            raise UserError(f"{redact(self.files.address)} holds no row\n  what to do: check the files")

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image; a thread reads the next few while these are handed out."""
        cells = _Cells(self.files.storage, self.names, Visit(self.files, shard))
        return read_in_turn(shard.refs, cells.fetch, cells.close)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the objects or the labels, where the files have some."""
        if self.truth_schema is None:
            return None
        if self.names.objects is not None:
            return truth_table(shard.refs, self.truth_schema)
        rows = [{"image_id": ref.key, LABEL: ref.columns[LABEL]} for ref in shard.refs]
        return truth.table(rows, self.truth_schema)

    def _numbered(self, after: ImageRef | None) -> Iterator[ImageRef]:
        """Go on right behind ``after``: its place says where."""
        place = None if after is None else _row(after)
        for entry in self.files.entries(after.uri if after else None):
            first = 0 if place is None else place + 1
            place = None
            for row, cells in self._rows(entry, first):
                yield self._ref(entry, row, cells)

    def _keyed(self, after: ImageRef | None) -> Iterator[ImageRef]:
        """Begin anew whatever ``after`` is, since each key is compared with all before it."""
        behind, place = after is None, 0
        starts: list[tuple[int, Entry]] = []
        with unique_keys() as keys:
            for entry in self.files.entries():
                starts.append((place, entry))
                for row, cells in self._rows(entry, 0):
                    ref = self._ref(entry, row, cells)
                    if pair := keys.add(ref.key, place):
                        raise self._twice(starts, *pair)
                    place += 1
                    if behind:
                        yield ref
                    elif after is not None and ref.key == after.key:
                        behind = True
            if pair := keys.duplicate():
                raise self._twice(starts, *pair)
        if not behind and after is not None:
            raise self.files.lost(after)

    def _rows(self, entry: Entry, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Stream what the listing needs of the rows of a file, beginning with row ``first``."""
        where = redact(entry.uri)
        with opened(self.files.storage, entry.uri) as handle, as_user_error(where):
            file = ParquetTable(handle, _LISTED_BUFFER)
            check_same(self.names, self.first, file.schema, where)
            file.require_rows(self.names.leaf)
            count = file.rows
            if not self.names.listed or first >= count:
                yield from ((row, {}) for row in range(first, count))
                return
            group = file.group_of(first)
            row = file.starts[group]
            for number in range(group, file.groups):
                for cells in file.cells(number, self.names.listed, _LISTED_ROWS):
                    if row >= first:
                        yield row, cells
                    row += 1

    def _ref(self, entry: Entry, row: int, cells: dict[str, Any]) -> ImageRef:
        names = self.names
        columns = {name: cells[name] for name in names.keep}
        try:
            if names.label is not None:
                columns[LABEL] = _short(class_name(cells[names.label], names.names))
            if names.objects is not None:
                size = (cells.get("width"), cells.get("height")) if names.size else (None, None)
                columns[TRUTH] = as_json(cells[names.objects], size, names.names)
        except ValueError as error:
            raise self._wrong(entry, row, names.truth, str(error)) from None
        key = f"{self.files.name(entry.uri)}#{row}" if names.key is None else self._key(entry, row, cells)
        return ImageRef(key, entry.uri, Row(row), entry.etag, columns)

    def _key(self, entry: Entry, row: int, cells: dict[str, Any]) -> str:
        key = cells[self.names.key or ""]
        if key is None or key == "":
            raise self._wrong(entry, row, self.names.key, "expected a key, got nothing")
        try:
            return _short(str(key)) or ""
        except ValueError as error:
            raise self._wrong(entry, row, self.names.key, str(error)) from None

    def _wrong(self, entry: Entry, row: int, column: str | None, what: str) -> UserError:
        return UserError(
            f"{redact(entry.uri)}, row {row}, column {column!r}: {what}\n"
            "  what to do: mend the file, or name another column in input.key or input.label"
        )

    def _twice(self, starts: Sequence[tuple[int, Entry]], first: int, second: int) -> UserError:
        places = []
        for place in (first, second):
            start, entry = starts[bisect_right(starts, place, key=lambda one: one[0]) - 1]
            places.append((entry, place - start))
        _, cells = next(self._rows(*places[0]))
        one, other = (f"{self.files.name(entry.uri)}#{row}" for entry, row in places)
        return UserError(
            f"{redact(self.files.address)}: {one} and {other} have the same {self.names.key} "
            f"{self._key(*places[0], cells)!r}\n  what to do: give each image a key of its own"
        )


def open_parquet(input: Input, storage: Storage) -> ParquetSource:
    """Return the source of Parquet files with images; reads the first file's schema. Raises `UserError`."""
    files = find(input.url, storage, SUFFIXES, KIND)
    entry = next(files.entries())
    with _table(storage, entry) as table:
        schema = table.schema
        names = choose(input, schema, redact(entry.uri))
        if names.nested and table.is_empty(names.leaf):
            raise UserError(
                f"{redact(entry.uri)}: the images in the column {names.image!r} have paths alone, no bytes\n"
                f"  what to do: {EMBED}; or write those paths as text and give input.format=list"
            )
    if names.names is None and has_numbers(schema, names.truth):
        names = replace(names, names=_names_beside(storage, entry))
    kept = [pa.field(name, kept_type(schema, name)) for name in names.keep]
    truths = [pa.field(TRUTH if names.objects else LABEL, pa.string())] if names.truth else []
    classes = [truth.Class(name, number) for number, name in enumerate(names.names or ())]
    plain = truth.OBJECTS_SCHEMA if names.objects else truth.LABEL_SCHEMA
    used = pa.schema([schema.field(name) for name in (names.image, *names.listed)])
    truth_schema = truth.with_classes(plain, classes) if truths else None
    return ParquetSource(files, names, used, pa.schema([*kept, *truths]), truth_schema)


def is_parquet(url: str, storage: Storage) -> bool:
    """Say whether the first Parquet file of an address holds images; one that can't be read doesn't."""
    try:
        entry = next(find(url, storage, SUFFIXES, KIND).entries())
        with _table(storage, entry) as table:
            return holds_images(table.schema)
    except UserError:
        return False


@contextmanager
def _table(storage: Storage, entry: Entry) -> Iterator[ParquetTable]:
    with opened(storage, entry.uri) as handle:
        with as_user_error(redact(entry.uri)):
            table = ParquetTable(handle, _LISTED_BUFFER)
        yield table


def _names_beside(storage: Storage, entry: Entry) -> tuple[str, ...] | None:
    """Return the lines of a file of class names in the same folder; None where there is none."""
    try:
        data = storage.read(join(parent(entry.uri), _CLASSES_FILE), limit=_CLASSES_BYTES)
    except (NotFound, Forbidden, Unreadable, TooLarge):
        return None
    return tuple(line.strip() for line in decoded(data, "replace").splitlines() if line.strip())


def _short(text: str | None) -> str | None:
    if text is not None and len(text) > TEXT:
        raise ValueError(f"expected at most {TEXT:,} characters, got {len(text):,}")
    return text


def _row(ref: ImageRef) -> int:
    if not isinstance(ref.at, Row):
        raise TypeError(f"{ref.key}: expected a row, got {ref.at}")
    return ref.at.index


class _Cells:
    """The images of one `read`, in one thread: one file is open, one row group under way."""

    def __init__(self, storage: Storage, names: ParquetColumns, visit: Visit) -> None:
        self._storage, self._names, self._visit = storage, names, visit
        self._uri: str | None = None
        self._handle: BinaryIO | None = None
        self._groups: _Groups | None = None

    def fetch(self, ref: ImageRef) -> Content | Failure:
        """Return the bytes of an image."""
        return self._visit.problem(ref) or self._cell(ref)

    def close(self) -> None:
        """Close the open file."""
        self._uri = self._groups = None
        if self._handle is not None:
            self._handle.close()

    def _cell(self, ref: ImageRef) -> Content | Failure:
        try:
            cell = self._of(ref.uri).cell(_row(ref))
        except (NotFound, Forbidden, Unreadable) as error:
            return self._visit.blame(ref, error)
        except OverLimit as error:
            return Failure("read", "too_large", f"{redact(ref.uri)}, row {_row(ref)}: {error}")
        except _DAMAGE as error:
            raise_if_disk(error, redact(ref.uri))
            return unreadable(ref, f"row {_row(ref)}: {error}")
        if cell is None:
            return Failure("read", "empty", f"{redact(ref.uri)}, row {_row(ref)}: there is no image in it")
        return cell

    def _of(self, uri: str) -> _Groups:
        if self._groups is None or self._uri != uri:
            self.close()
            self._handle = self._storage.open(uri)
            self._groups, self._uri = _Groups(ParquetTable(self._handle, _BUFFER), self._names.leaf), uri
        return self._groups


class _Groups:
    """One file's images: any row is found, the next ones cheaply.

    What is damaged in a row group is the failure of all its rows from there on, for Arrow's reader is
    not to be trusted behind it.
    """

    def __init__(self, file: ParquetTable, leaf: str) -> None:
        self._file, self._leaf = file, leaf
        self._damage: dict[int, Exception] = {}
        self._group, self._first = -1, 0
        self._cells: pa.Array[Any] = pa.array([], pa.binary())
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def cell(self, row: int) -> bytes | None:
        """Return the image of a row; raises what reading it raises."""
        group = self._file.group_of(row)
        if group in self._damage:
            raise self._damage[group]
        try:
            if group != self._group or row < self._first:
                self._begin(group)
            while row >= self._first + len(self._cells):
                self._advance()
        except Exception as error:
            self._group = -1  # what was under way is over; another row begins anew
            self._cells, self._batches = self._cells[:0], iter(())
            if isinstance(error, (*_DAMAGE, OverLimit)):
                self._damage[group] = error
            raise
        return _image(self._cells[row - self._first])

    def _begin(self, group: int) -> None:
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // self._mean_bytes(group)))
        self._batches = self._file.batches(group, [self._leaf], rows, _IMAGES)
        self._group, self._first, self._cells = group, self._file.starts[group], self._cells[:0]

    def _advance(self) -> None:
        behind = self._first + len(self._cells)
        self._cells = self._cells[:0]  # the old batch goes before the new one comes
        batch = next(self._batches, None)
        if batch is None:
            raise OSError(f"row group {self._group} ends before its last row")
        self._first, self._cells = behind, batch.column(0)

    def _mean_bytes(self, group: int) -> int:
        """Return the mean size of an image, by the footer."""
        column = self._file.column(group, self._leaf)
        size = column.size if column else 0
        return max(1, size // max(1, self._file.rows_in(group)))


def _image(cell: Any) -> bytes | None:
    """Return the bytes in a cell, or in the one field of a cell that is a struct."""
    if isinstance(cell, pa.StructScalar):
        cell = cell["bytes"] if cell.is_valid else cell
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    if not cell.is_valid:
        return None
    size = cell.as_buffer().size
    if size > MAX_BYTES:
        raise OverLimit(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
    return bytes(cell.as_py())
