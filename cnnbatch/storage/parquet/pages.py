"""What a Parquet file says of its own size: in its footer, and in its pages' headers as they pass to Arrow.

Arrow decodes what they say, and a few bytes may say gigabytes. So the footer is read here first, and the file
that Arrow reads from looks into the column chunks as they stream by: nothing is fetched twice. Arrow's own
objects for a footer end the process where a footer contradicts itself, so they are not asked.

https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from cnnbatch.storage.parquet.thrift_compact import Damaged, OverLimit, struct

FOOTER_BYTES = 16 << 20
"""Bytes that a footer may have."""

FOOTER_PARTS = 500_000
"""Parts that a footer may have: a column of a row group is about six."""

DICTIONARY = 2
"""`Page.kind` of a dictionary."""

DELTA_BYTE_ARRAY = 7
"""`Page.encoding` in which each value repeats the beginning of the one before."""

_FOOTER_READ = 64 << 10  # what Arrow reads first, so that one request serves both
_SIZES = 5, 6, 7, 9  # values, decompressed and stored bytes, where the pages begin
_HEADER_PARTS = 100
_USUAL_HEADER = 1 << 10  # bytes that are looked at first
_MOST_HEADER = 1 << 20  # bytes; statistics may hold the least and the greatest cell
_DETAILS = 5, 7, 8  # data page, dictionary page, data page of the second version


class NoParquet(Damaged):
    """The file is too short for any."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of plain values in one row group; it lies from ``start`` to ``end``.

    ``nulls`` are the values that are none, where the footer says how many.
    """

    start: int
    end: int
    values: int
    size: int
    nulls: int | None = None


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group."""

    rows: int
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What a page's header says: bytes as stored and as decompressed, and how many values they are."""

    kind: int
    size: int
    stored: int
    values: int
    encoding: int


def read_footer(file: BinaryIO, size: int) -> tuple[bytes, tuple[RowGroup, ...]]:
    """Return the end of a file, from its footer on, and the footer's row groups.

    Raises:
        Damaged: it is no footer, or says what can't be true of a file of ``size`` bytes.
        OverLimit: it has more than `FOOTER_BYTES`.
    """
    file.seek(max(0, size - _FOOTER_READ))
    end = file.read(_FOOTER_READ)
    if end[-4:] == b"PARE":
        raise Damaged("it is encrypted")
    if size < 12:
        raise NoParquet(f"it has {size} bytes")
    if end[-4:] != b"PAR1":
        raise Damaged("it does not end as one does, so it may have been cut")
    length = int.from_bytes(end[-8:-4], "little")
    if length > size - 12:
        raise Damaged(f"its footer is said to have {length:,} bytes, of {size:,} in all")
    if length > FOOTER_BYTES:
        raise OverLimit(f"a footer of {length:,} bytes; at most {FOOTER_BYTES:,} are read")
    if length + 8 > len(end):
        file.seek(size - length - 8)
        end = file.read(length + 8)
    try:
        fields, _ = struct(end[-length - 8 : -8], [FOOTER_PARTS])
        groups = tuple(_group(one, size - length - 8) for one in fields[4])
    except (LookupError, TypeError, AttributeError):
        raise Damaged("its footer is damaged") from None
    if fields.get(3) != sum(group.rows for group in groups):
        raise Damaged(f"its footer claims {fields.get(3)} rows, which its row groups do not have")
    return end, groups


def _group(fields: Any, end: int) -> RowGroup:
    if not isinstance(fields[3], int) or fields[3] < 0:
        raise Damaged("a row group has less than no row")
    if not fields[3]:
        return RowGroup(0, (Column(0, 0, 0, 0),) * len(fields[1]))
    return RowGroup(fields[3], tuple(_column(one[3], end) for one in fields[1]))


def _column(fields: Any, end: int) -> Column:
    values, size, stored, first = (fields[number] for number in _SIZES)
    dictionary = fields.get(11) or 0
    if not all(
        isinstance(number, int) and number >= 0 for number in (values, size, stored, first, dictionary)
    ):
        raise Damaged("its footer is damaged")
    start = min(dictionary or first, first)
    if stored and not 4 <= start <= start + stored <= end:
        raise Damaged("a column is said to lie outside of the file")
    return Column(start, start + stored, values, size, (fields.get(12) or {}).get(3))


def page_header(data: bytes) -> tuple[Page, int] | None:
    """Return the page whose header begins ``data``, and the header's length; None where it goes on.

    Raises:
        Damaged: it is no header.
    """
    try:
        fields, length = struct(data, [_HEADER_PARTS])
        if length > len(data):
            raise IndexError
    except IndexError:
        if len(data) < _MOST_HEADER:
            return None
        raise Damaged(f"the header of a page has more than {_MOST_HEADER:,} bytes") from None
    details: Any = next((fields[number] for number in _DETAILS if isinstance(fields.get(number), dict)), {})
    encoding = details.get(4 if 8 in fields else 2, 0)
    numbers = (fields.get(1), fields.get(2), fields.get(3), details.get(1, 0), encoding)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise Damaged("the header of a page contradicts itself")
    return Page(*numbers), length  # type: ignore[arg-type]  # they are numbers


@dataclass(slots=True)
class Chunk:
    """The bytes of one column of one row group, and what is checked of each of its pages."""

    start: int
    end: int
    check: Callable[[Page], None]
    _at: int = 0
    _seen: int = 0
    _header: bytes = field(default=b"", repr=False)

    def see(self, at: int, data: bytes) -> None:
        """Look at bytes that begin at the position ``at``; raises what ``check`` raises."""
        if at == self.start:
            self._at, self._header = at, b""
        elif at != self._seen:
            raise Damaged(f"two columns share the bytes at {at:,}")
        self._seen = at + len(data)
        while self._at < min(self._seen, self.end):
            found = self._find(data, max(0, self._at + len(self._header) - at))
            if found is None:
                return
            page, length = found
            self._header = b""
            self._at += length + page.stored
            if self._at > self.end:
                raise Damaged(f"a page of {page.stored:,} bytes lies beyond the end of its column")
            self.check(page)

    def _find(self, data: bytes, first: int) -> tuple[Page, int] | None:
        """Return the page whose header goes on at ``first``; of one that ends later keep the beginning."""
        begun = self._header + data[first : first + _USUAL_HEADER]
        found = page_header(begun)
        if found is None and first + _USUAL_HEADER < len(data):
            begun = self._header + data[first : first + _MOST_HEADER]
            found = page_header(begun)
        self._header = begun
        return found


class Watched:
    """A file that Arrow reads from, of which the ``chunks`` are looked at as they pass.

    ``end`` are its last bytes, which are not read again. ``fault`` is what reading it raised last, since
    Arrow may wrap it.
    """

    def __init__(self, file: BinaryIO, size: int, end: bytes) -> None:
        self._file, self._size, self._end = file, size, end
        self._at = 0
        self._chunks: Sequence[Chunk] = ()
        self.fault: Exception | None = None
        self.close = file.close

    @property
    def closed(self) -> bool:
        """Say whether the file is closed."""
        return self._file.closed

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        return self._at

    def watch(self, chunks: Sequence[Chunk]) -> None:
        """Let these be read from now on, and nothing else."""
        self._chunks, self.fault = chunks, None

    def read(self, count: int = -1) -> bytes:
        """Return at most ``count`` bytes."""
        at = self._at
        try:
            data = self._read(at, self._size - at if count < 0 else count)
        except Exception as fault:
            self.fault = fault
            raise
        self._at += len(data)
        return data

    def _read(self, at: int, count: int) -> bytes:
        in_end = at - (self._size - len(self._end))
        if in_end >= 0:
            data = self._end[in_end : in_end + count]
        else:
            self._file.seek(at)
            data = self._file.read(count)
        if self._chunks:
            self._chunk(at).see(at, data)
        return data

    def _chunk(self, at: int) -> Chunk:
        for chunk in self._chunks:
            if chunk.start <= at < chunk.end:
                return chunk
        raise Damaged(f"bytes at {at:,} are asked for, where no column lies")
