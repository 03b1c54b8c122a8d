"""The members of a tar, streamed: headers and small files only, the data of large ones is stepped over.

The headers are `tarfile`'s to read; around it stands what it lacks: a cut or damaged archive is told
rather than taken for a short one, and a header that claims anything costs little.
"""

from __future__ import annotations

import gzip
import tarfile
import weakref
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, BinaryIO, Protocol, cast

from cnnbatch.errors import UserError
from cnnbatch.storage import Entry, Forbidden, NotFound, Storage, Unreadable, is_local, redact, without_query
from cnnbatch.types import Span

DAMAGE = (gzip.BadGzipFile, zlib.error, EOFError)
"""What a damaged stream of gzip raises."""

_BLOCK = 512
# Bytes of one name or set of attributes: what is quadratic in them stays below seconds.
_MOST_HEADER = 64 << 10
_MOST_HEADERS = 256 << 10  # bytes of all headers of one member: long names and attributes come before its own
_MOST_GLOBAL = 1000  # attributes that stand for all members behind them: each member copies them
_FIRST_WINDOW = 64 << 10
_LARGEST_WINDOW = 4 << 20
_NEAR = 256 << 10  # a jump no longer than this is read over: it costs less than another request
_BROKEN = (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError, *DAMAGE)


@dataclass(frozen=True, slots=True)
class Member:
    """One member: where its header and its data begin; ``text`` is its data, where they were asked for.

    ``kind`` is empty for a plain file, else what it is in place of one.
    """

    name: str
    header: int
    offset: int
    size: int
    kind: str = ""
    text: bytes | None = None


class Stream(Protocol):
    """A file that is read forwards."""

    def read(self, count: int, /) -> bytes:
        """Return at most ``count`` bytes."""

    def seek(self, position: int, /) -> int:
        """Go to a position."""

    def tell(self) -> int:
        """Return the position."""


def is_gzip(uri: str) -> bool:
    """Say whether an address is that of a compressed tar."""
    return without_query(redact(uri)).lower().endswith((".gz", ".tgz"))


def stream(storage: Storage, entry: Entry) -> Stream:
    """Return the bytes of a tar, those of a compressed one as they were before."""
    window = _Window(partial(storage.read, entry.uri), entry.size, _LARGEST_WINDOW)
    if is_gzip(entry.uri):
        return gzip.GzipFile(fileobj=cast(IO[bytes], window), mode="rb")
    return _Opened(storage.open(entry.uri), entry.size) if is_local(entry.uri) else window


def members(storage: Storage, entry: Entry, most: Callable[[str], int]) -> Iterator[Member]:
    """Stream the members of a tar; ``most`` says of a name how many bytes to read as text, 0 for none.

    Where another archive follows the zeros at the end of the first, as ``cat`` puts it there, its members
    follow. A tar that ends too early or holds something else is a `UserError` behind its last whole member.
    """
    file, where = _Guarded(stream(storage, entry)), redact(entry.uri)
    begin: int | None = 0
    with _told(where):
        while begin is not None:
            file.seek(begin)
            last = yield from _archive(file, begin, most, where)
            begin = _next_archive(file, last, where)


def _archive(file: _Guarded, at: int, most: Callable[[str], int], where: str) -> Generator[Member, None, str]:
    """Stream the members of the archive at ``at``; return the last one's name for messages."""
    last = "its beginning"
    tar = tarfile.TarFile(fileobj=cast(IO[bytes], file), encoding="utf-8", errors="surrogateescape")
    while (found := tar.next()) is not None:
        file.header = 0
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
        if len(tar.pax_headers) > _MOST_GLOBAL:
            raise _wrong(
                where, f"has more than {_MOST_GLOBAL:,} global attributes before {found.name!r:.100}"
            )
        member = _member(found, at, tar.offset, where)
        if limit := most(member.name) if not member.kind else 0:
            member = _with_text(member, file, limit, where)
        if not file.reaches(member.offset + member.size):
            raise _cut(where, member, file.tell())
        at, last = tar.offset, repr(member.name)
        yield member
    if file.last != bytes(_BLOCK):
        raise _endless(where, at, last, len(file.last) < _BLOCK)
    file.seek(at + _BLOCK)
    return last


def _next_archive(file: _Guarded, last: str, where: str) -> int | None:
    """Return where the next archive begins behind the zeros of this one; None where the file ends."""
    while block := file.whole(_BLOCK):
        if any(block):
            file.take_back(block)
            if _is_header(block):
                return file.tell()
            raise _wrong(
                where,
                f"goes on at byte {file.tell():,}, behind its end at {last}, with what is no archive",
                f"cut it off, if it is not needed: truncate -s {file.tell()} {where}; else write it again",
            )
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except _BROKEN:
        return False
    return True


def _member(found: tarfile.TarInfo, at: int, behind: int, where: str) -> Member:
    """Check a header: the archive goes on ``behind`` it, and not before its data end."""
    kind = _kind(found)
    size = 0 if kind else found.size
    if size < 0 or not at < behind >= found.offset_data + size:
        raise _wrong(where, f"the header at byte {at:,} contradicts itself")
    try:
        found.name.encode()
    except UnicodeEncodeError:
        raise _wrong(where, f"the name of a member must be UTF-8, got {found.name!r}", "rename it") from None
    return Member(found.name, found.offset, found.offset_data, size, kind)


def _kind(found: tarfile.TarInfo) -> str:
    if found.issym() or found.islnk():
        return f"a link to {found.linkname}"
    if found.isdir():
        return "a folder"
    if found.issparse():
        return "a sparse file"
    return "" if found.isreg() else "no file"


def _with_text(member: Member, file: _Guarded, limit: int, where: str) -> Member:
    if member.size > limit:
        raise _wrong(
            where, f"{member.name!r} has {member.size:,} bytes, at most {limit:,} were expected", "shorten it"
        )
    file.seek(member.offset)
    return replace(member, text=file.whole(member.size))


class _Guarded:
    """What `tarfile` reads from: no more than a header may have; ``last`` is what it read last.

    ``header`` counts the bytes of one member's headers.
    """

    def __init__(self, file: Stream) -> None:
        self._file, self.last, self.header = file, b"", 0
        self._back = b""

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell() - len(self._back)

    def seek(self, position: int) -> int:
        """Go to a position."""
        if position != self.tell():
            self._back = b""
            self._file.seek(position)
        return self.tell()

    def take_back(self, data: bytes) -> None:
        """Have bytes that were read last read again: to go back in a compressed file is to begin anew."""
        self._back = data

    def whole(self, count: int) -> bytes:
        """Return the next bytes."""
        found, self._back = self._back[:count], self._back[count:]
        return found + self._file.read(count - len(found)) if len(found) < count else found

    def read(self, count: int) -> bytes:
        """Return the bytes of a header."""
        if not 0 <= count <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        self.header += count
        if self.header > _MOST_HEADERS:
            raise tarfile.ReadError(f"more than {_MOST_HEADERS:,} bytes of headers for one member")
        self.last = self.whole(count)
        return self.last

    def reaches(self, position: int) -> bool:
        """Go to a position, and say whether the file has it."""
        try:
            self.seek(position)
            return self.tell() >= position
        except EOFError:
            return False


class _Opened:
    """A file of this machine, whose end no jump passes: a header costs a read, not another opening."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        weakref.finalize(self, file.close)
        self.read, self.tell = file.read, file.tell

    def seek(self, position: int) -> int:
        return self._file.seek(min(position, self._size))


class _Window:
    """A file by its ranges: small ones for headers far apart, ever larger ones where all is read."""

    def __init__(self, fetch: Callable[[Span], bytes], size: int, largest: int) -> None:
        self._fetch, self._size, self._largest = fetch, size, largest
        self._at, self._start, self._data = 0, 0, b""
        self._length = min(_FIRST_WINDOW, largest)

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        self._at = min(position, self._size)
        return self._at

    def read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count and self._at < self._size:
            if not self._start <= self._at < self._start + len(self._data):
                self._move()
            place = self._at - self._start
            part = self._data[place : place + count - len(found)]
            self._at += len(part)
            found += part
        return bytes(found)

    def _move(self) -> None:
        """Fetch the window that begins here."""
        near = 0 <= self._at - self._start - len(self._data) <= _NEAR
        self._length = min(self._length * 2 if near and self._data else _FIRST_WINDOW, self._largest)
        self._start = self._at
        self._data = self._fetch(Span(self._at, min(self._length, self._size - self._at)))
        if not self._data:
            raise EOFError("the file has become shorter")


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn what a damaged or unreadable tar raises into the user's mistake."""
    try:
        yield
    except _BROKEN as error:
        raise _wrong(where, f"is no whole tar: {error}") from None
    except (NotFound, Forbidden, Unreadable) as error:
        raise _wrong(
            where, f"cannot be read: {error}", "check the address and the right to read it"
        ) from None


def _cut(where: str, member: Member, size: int) -> UserError:
    end = member.offset + member.size
    return _wrong(where, f"ends in the middle of {member.name!r}, after {size:,} bytes; expected {end:,}")


def _endless(where: str, at: int, last: str, ends: bool) -> UserError:
    if ends:
        return _wrong(
            where,
            f"ends behind {last} without the zeros that end a tar: it may have been cut there",
            f"fetch it again; if it is whole, add them: head -c 1024 /dev/zero >> {where}",
        )
    return _wrong(where, f"has no header at byte {at:,}, behind {last}, where one was expected")


def _wrong(where: str, what: str, mend: str = "fetch or write it again") -> UserError:
    return UserError(f"{where} {what}\n  what to do: {mend}")
