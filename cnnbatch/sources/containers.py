"""Files that hold many images each: which of them an address names, and their images read in order, ahead.

What several images share, a range or a row group, is read once, by threads that live as long as one
`read`; the readers wait for it. So a container costs few requests, and memory for the few pieces under way.
"""

from __future__ import annotations

import posixpath
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import BinaryIO

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.sources.files import globs, patterns
from cnnbatch.sources.reading import MAX_BYTES, read
from cnnbatch.storage import (
    Entry,
    Forbidden,
    NotFound,
    Storage,
    Unreadable,
    is_local,
    normalize,
    parent,
    redact,
    without_query,
)
from cnnbatch.types import Content, Failure, ImageRef, Shard, Span

PIECE_IMAGES = 16
"""Images of a piece whose size is not known before it is read: half of what may be unread at once."""

RANGE_BYTES = 4 << 20
"""The most bytes that are fetched at once for several images; one larger image is fetched alone."""

_GAP_BYTES = 512 << 10  # what lies between two images of a range and is fetched for nothing
_WEB = ("http://", "https://")
_RANGES = 4  # ranges under way beside the one that is handed out

Reader = Callable[[], Content | Failure]
Piece = Sequence[ImageRef]
Fetched = Future[Sequence[Content | Failure]]


@dataclass(frozen=True)
class Containers:
    """The files of one address: a file, a folder or a glob, each by its suffix, in the order of their bytes.

    ``root`` is what names are relative to; ``pattern`` is what they match below it; ``kind`` says in
    messages what was expected.
    """

    storage: Storage
    address: str
    suffixes: tuple[str, ...]
    kind: str
    root: str
    pattern: str | None = None
    single: bool = False

    @property
    def local_root(self) -> str | None:
        """The folder that a worker must see, where it is one of this machine and the job's own."""
        return self.root if is_local(self.root) and not self.single else None

    def entries(self, first: str | None = None) -> Iterator[Entry]:
        """Stream the files, beginning with ``first``; none at all is a `UserError`."""
        if first is not None:
            yield self._again(first)
        elif self.single:
            yield self.head(self.address)
        if self.single:
            return
        found = first is not None
        for entry in self._listed(first):
            if self._takes(entry.uri):
                found = True
                yield entry
        if not found:
            raise self._none()

    def name(self, uri: str) -> str:
        """Return a file's path below the root; of a single one its name."""
        if self.single:
            return posixpath.basename(without_query(redact(uri)))
        return uri[len(self.root) :].lstrip("/")

    def lost(self, after: ImageRef) -> UserError:
        """Return what to raise where the image is gone behind which a listing goes on."""
        return UserError(
            f"{redact(self.address)} no longer holds {after.key!r}, behind which the listing goes on\n"
            "  what to do: give the input as it was, or a new output"
        )

    def _takes(self, uri: str) -> bool:
        path = self.name(uri)
        if "/." in path or path.startswith("."):
            return False
        if self.pattern is None:
            return path.lower().endswith(self.suffixes)
        named = globs.names_suffix(self.pattern) or path.lower().endswith(self.suffixes)
        return named and globs.compiled(self.pattern).fullmatch(path) is not None

    def _listed(self, behind: str | None) -> Iterator[Entry]:
        try:
            yield from self.storage.list(self.root, behind)
        except NotFound:
            if behind is None:
                raise self._none() from None
        except Forbidden as error:
            raise EnvironmentFault(
                f"the input may not be listed: {error}", "give the right to list it"
            ) from None

    def _again(self, uri: str) -> Entry:
        """Return the file that a listing goes on in."""
        ours = uri == self.address if self.single else uri.startswith(self.root) and self._takes(uri)
        try:
            if not ours:
                raise UserError(f"{redact(self.address)} does not name it\n  what to do: give that input")
            return self.head(uri)
        except UserError as error:
            raise UserError(
                f"the listing goes on in {redact(uri)}, but {error}, or give a new output"
            ) from None

    def head(self, uri: str) -> Entry:
        """Return one of the files; that it is not there is a `UserError`."""
        with _readable(uri):
            return self.storage.head(uri)

    def _none(self) -> UserError:
        wanted = f"that match {self.pattern}" if self.pattern else f"({', '.join(self.suffixes)})"
        return UserError(
            f"input.url: expected {self.kind} {wanted} below {redact(self.root)}, found none\n"
            "  what to do: check the address, or name another input.format"
        )


def find(url: str | Sequence[str], storage: Storage, suffixes: tuple[str, ...], kind: str) -> Containers:
    """Return the containers that ``input.url`` names; asks the storage only whether it is one file."""
    if not isinstance(url, str):
        raise UserError(
            f"input.url: one file, folder or glob of {kind} was expected, got {len(url)} addresses\n"
            "  what to do: put them into one folder, or give a glob that matches them"
        )
    address = normalize(url)
    root, pattern = patterns.split(address, storage)
    if pattern is not None:
        return Containers(storage, address, suffixes, kind, root, pattern)
    if _is_file(address, storage):
        return Containers(storage, address, suffixes, kind, parent(address), single=True)
    return Containers(storage, address, suffixes, kind, address)


def _is_file(address: str, storage: Storage) -> bool:
    if address.startswith(_WEB):
        return True
    try:
        storage.head(address)
    except (NotFound, Unreadable, Forbidden):  # a store may forbid to ask for what is not there
        return False
    return True


@contextmanager
def opened(storage: Storage, uri: str) -> Iterator[BinaryIO]:
    """Open a container for its listing; that it can't be read is the user's mistake."""
    with _readable(uri), storage.open(uri) as file:
        yield file


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (NotFound, Forbidden, Unreadable) as error:
        raise UserError(
            f"{redact(uri)} cannot be read: {error}\n  what to do: check the address and the right to read it"
        ) from None


class Visit:
    """One call of `read`: what it has found out about the containers of its shard."""

    def __init__(self, files: Containers, shard: Shard) -> None:
        self._storage, self._root, self._shard = files.storage, files.local_root, shard
        self._problems: dict[str, Failure | None] = {}

    def problem(self, ref: ImageRef) -> Failure | None:
        """Return why an image's file can't be used: it is gone, refused, or not the one that was listed."""
        if ref.uri not in self._problems:
            self._problems[ref.uri] = self._find(ref)
        return self._problems[ref.uri]

    def blame(self, ref: ImageRef, error: Exception) -> Failure:
        """Return the failure that ``error`` is to an image; `EnvironmentFault` where it is not its own."""
        found = read(self._storage, replace(ref, at=Span(0, 1)), self._shard, self._root)
        return found if isinstance(found, Failure) else unreadable(ref, str(error))

    def fetch(self, piece: Piece) -> list[bytes | Failure]:
        """Read the images of one range in one request."""
        first = _span(piece[0])
        failure = self.problem(piece[0])
        if failure is None and first.length > MAX_BYTES:
            failure = Failure("read", "too_large", f"{first.length:,} bytes, at most {MAX_BYTES:,} are read")
        if failure is not None:
            return [failure] * len(piece)
        whole = Span(first.offset, _end(piece[-1]) - first.offset)
        data = read(self._storage, replace(piece[0], at=whole), self._shard, self._root)
        if isinstance(data, Failure):
            return [data] * len(piece)
        return [_cut(data, ref, first.offset) for ref in piece]

    def _find(self, ref: ImageRef) -> Failure | None:
        try:
            etag = self._storage.head(ref.uri).etag
        except (NotFound, Forbidden, Unreadable, UserError) as error:
            return self.blame(ref, error)
        if ref.etag is None or ref.etag == etag:
            return None
        return unreadable(ref, "changed since it was listed, so that its images lie elsewhere")


def unreadable(ref: ImageRef, why: str) -> Failure:
    """Return the failure of an image whose container doesn't give it."""
    return Failure("read", "unreadable", f"{redact(ref.uri)}: {why}")


def ranges(refs: Iterable[ImageRef]) -> Iterator[Piece]:
    """Group neighbours in one file, so that each group is one request of at most `RANGE_BYTES`."""
    piece: list[ImageRef] = []
    for ref in refs:
        if piece and not _joins(piece, ref):
            yield piece
            piece = []
        piece.append(ref)
    if piece:
        yield piece


def _joins(piece: Piece, ref: ImageRef) -> bool:
    gap = _span(ref).offset - _end(piece[-1])
    near = piece[0].uri == ref.uri and 0 <= gap <= _GAP_BYTES
    return near and _end(ref) - _span(piece[0]).offset <= RANGE_BYTES


def read_ahead(
    pieces: Iterable[Piece],
    fetch: Callable[[Piece], Sequence[Content | Failure]],
    threads: int = _RANGES,
    close: Callable[[], None] | None = None,
) -> Iterator[Reader]:
    """Give one reader an image; as many pieces as ``threads`` are fetched beside the one handed out.

    With one thread ``fetch`` needs no locks, and ``close`` runs behind its last call.
    """
    fetching = _Fetching(fetch, threads, close)
    waiting: deque[tuple[int, Fetched]] = deque()
    try:
        for piece in pieces:
            waiting.append((len(piece), fetching.submit(piece)))
            if len(waiting) > threads:
                yield from _readers(*waiting.popleft())
        while waiting:
            yield from _readers(*waiting.popleft())
        fetching.end(stop=False)
    finally:
        fetching.end(stop=True)


class _Fetching:
    """Threads that fetch pieces in the order they are given.

    No pool of the standard library's: a generator may be left to the garbage collector, which may run
    inside such a pool, and then `end` would wait for a lock that its own thread holds.
    """

    def __init__(
        self,
        fetch: Callable[[Piece], Sequence[Content | Failure]],
        threads: int,
        close: Callable[[], None] | None,
    ) -> None:
        self._fetch, self._close, self._threads = fetch, close, threads
        self._stopped = self._ended = False
        self._tasks: SimpleQueue[tuple[Piece, Fetched] | None] = SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=self._work, name="container", daemon=True).start()

    def submit(self, piece: Piece) -> Fetched:
        """Return the images of a piece, once they are fetched."""
        fetched: Fetched = Future()
        self._tasks.put((piece, fetched))
        return fetched

    def end(self, stop: bool) -> None:
        """Let the threads end: behind what they were given, or with ``stop`` behind what is under way."""
        if not self._ended:
            self._stopped, self._ended = stop, True
            for _ in range(self._threads):
                self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._settle(*task)
            del task  # the images are the readers' alone
        if self._close is not None:
            self._close()

    def _settle(self, piece: Piece, fetched: Fetched) -> None:
        if self._stopped:
            fetched.cancel()
            return
        try:
            fetched.set_result(self._fetch(piece))
        except BaseException as error:  # Handed to the readers, which raise it.
            fetched.set_exception(error)


def _readers(count: int, fetched: Fetched) -> Iterator[Reader]:
    for number in range(count):
        yield partial(_one, fetched, number)


def _one(fetched: Fetched, number: int) -> Content | Failure:
    return fetched.result()[number]


def _cut(data: bytes, ref: ImageRef, start: int) -> bytes | Failure:
    span = _span(ref)
    part = data[span.offset - start : span.offset - start + span.length]
    return part if len(part) == span.length else unreadable(ref, "ends before the end of this image")


def _span(ref: ImageRef) -> Span:
    if not isinstance(ref.at, Span):
        raise TypeError(f"{ref.key}: expected a byte range, got {ref.at}")
    return ref.at


def _end(ref: ImageRef) -> int:
    return _span(ref).offset + _span(ref).length
