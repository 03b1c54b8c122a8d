"""Files of this machine or of a shared mount, on ``os`` alone; hard links create without overwriting."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage.contract import (
    AlreadyExists,
    Changed,
    Entry,
    Forbidden,
    NotFound,
    StorageOptions,
    TooLarge,
    Unreadable,
)
from cnnbatch.storage.retrying import attempts
from cnnbatch.types import Span

_UNFINISHED = ".cnnbatch-unfinished-"  # a file under this name is no object yet; listings leave it out
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
_REFUSED = {errno.EACCES, errno.EPERM}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_PASSING = {
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ECONNRESET,
    errno.ECONNABORTED,
}
_MEND = {
    errno.ENOSPC: "free space on that disk, or choose another place",
    errno.EDQUOT: "free space within the quota, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EIO: "check the disk or the mount",
    errno.ESTALE: "mount that file system again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of the system",
    errno.EACCES: "give this user the right to write there, or choose another place",
    errno.EPERM: "give this user the right to write there, or choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a place whose parent is a folder",
}

Result = TypeVar("Result")


class LocalFiles:
    """Plain paths; what a mount over the network fails to do for a moment is tried again."""

    def __init__(self, options: StorageOptions = StorageOptions()) -> None:  # noqa: B008 - frozen
        self._options = options

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the files below a folder by their paths' bytes; links are followed, loops are not."""
        root = os.fsencode(uri).rstrip(b"/") + b"/"
        start = (
            os.fsencode(after)[len(root) :]
            if after is not None and os.fsencode(after).startswith(root)
            else b""
        )
        for path in _walk(root, b"", start, ()):
            entry = _entry(path)
            if entry is not None:
                yield entry

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return a file's bytes, or those of ``span``."""
        return self._ask(uri, lambda: _read(uri, span, limit))

    def head(self, uri: str) -> Entry:
        """Return a file's size and etag."""
        status = self._ask(uri, lambda: os.stat(uri))
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{uri} is {_kind(status.st_mode)}, a file was expected")
        return Entry(uri, status.st_size, _etag(status))

    def open(self, uri: str) -> BinaryIO:
        """Open a file for reading."""
        return self._ask(uri, lambda: _regular(uri))

    def create(self, uri: str, data: bytes | Path) -> str:
        """Write a new file: under another name first, then linked into place, which never overwrites."""
        with _written(uri), _unfinished(uri, data) as unfinished:
            try:
                os.link(unfinished, uri)
            except FileExistsError:
                if not os.path.samefile(unfinished, uri):  # else the answer of a mount was lost: it is ours
                    raise AlreadyExists(uri) from None
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _rename_new(unfinished, uri)
            _sync_folder(uri)
            return _etag(os.stat(uri))

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Rename a new file over the one with ``etag``, which is locked meanwhile."""
        with _written(uri), _unfinished(uri, data) as unfinished:
            try:
                old = os.open(uri, os.O_RDWR)
            except FileNotFoundError:
                raise Changed(uri) from None
            try:
                fcntl.flock(old, fcntl.LOCK_EX)
                # Whoever held the lock before may have put another file here: ask the name, too.
                if not os.path.exists(uri) or _etag(os.stat(uri)) != etag or _etag(os.fstat(old)) != etag:
                    raise Changed(uri)
                new = _etag(os.stat(unfinished))
                os.replace(unfinished, uri)
            finally:
                os.close(old)
            _sync_folder(uri)
            return new

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write a file whole, over whatever is there."""
        with _written(uri), _unfinished(uri, data) as unfinished:
            os.replace(unfinished, uri)
            _sync_folder(uri)

    def delete(self, uri: str) -> None:
        """Remove a file."""
        with _written(uri), suppress(FileNotFoundError):
            os.unlink(uri)

    def answers(self, uri: str) -> bool:
        """Say whether this process may look into the file's folder."""
        return os.access(os.path.dirname(uri), os.X_OK)

    def _ask(self, uri: str, ask: Callable[[], Result]) -> Result:
        trouble = OSError()
        with _sorted(uri):
            for _ in attempts(self._options):
                try:
                    return ask()
                except OSError as error:
                    if error.errno not in _PASSING:
                        raise
                    trouble = error
            raise trouble
        raise AssertionError("what was sorted is raised")


def _read(uri: str, span: Span | None, limit: int | None) -> bytes:
    with _regular(uri) as file:
        if span is not None:
            file.seek(span.offset)
            return file.read(span.length)
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise TooLarge(f"{size:,} bytes, at most {limit:,} are read")
        return file.read(size)


def _walk(root: bytes, below: bytes, start: bytes, seen: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """Yield the paths under ``root + below`` behind ``start`` (a path below the root), ascending."""
    with _sorted(os.fsdecode(root + below)):
        status = os.stat(root + below)
        here = (status.st_dev, status.st_ino)
        if here in seen:  # a link to a folder that it lies in
            return
        names = _names(root + below)
    for name in names:
        path = below + name
        if name.endswith(b"/"):
            if path > start or start.startswith(path):
                yield from _walk(root, path, start, (*seen, here))
        elif path > start:
            yield root + path


def _names(folder: bytes) -> list[bytes]:
    """Return the names in a folder, sorted as their full paths are: a folder's ends in a slash."""
    with os.scandir(folder) as found:
        names = [
            entry.name + b"/" if entry.is_dir() else entry.name
            for entry in found
            if not entry.name.startswith(_UNFINISHED.encode())
        ]
    names.sort()
    return names


def _entry(path: bytes) -> Entry | None:
    try:
        uri = path.decode()
    except UnicodeDecodeError:
        raise UserError(
            f"a file name must be UTF-8; got {os.fsdecode(path)!r}\n"
            "  what to do: rename it, for instance with convmv"
        ) from None
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in _ABSENT | _REFUSED:  # a link that leads nowhere: listed, so that its row says so
            return Entry(uri, 0, None)
        _environment(error, uri)
    return Entry(uri, status.st_size, _etag(status)) if stat.S_ISREG(status.st_mode) else None


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"


def _regular(uri: str) -> BinaryIO:
    """Open a regular file; anything else is refused before it can block or never end."""
    descriptor = os.open(uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Unreadable(f"{uri} is {_kind(mode)}, a file was expected")
    return os.fdopen(descriptor, "rb")


@contextmanager
def _unfinished(uri: str, data: bytes | Path) -> Iterator[str]:
    """Give the name of a complete copy of ``data`` beside ``uri``; what is left of it goes at the end."""
    folder = os.path.dirname(uri)
    os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, _UNFINISHED + uuid.uuid4().hex)
    try:
        with open(name, "xb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield name
    finally:
        with suppress(OSError):
            os.unlink(name)


def _rename_new(unfinished: str, uri: str) -> None:
    """Rename without overwriting where hard links are unknown (FAT, some network mounts): under a lock."""
    lock = os.open(os.path.join(os.path.dirname(uri), _UNFINISHED + "lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(uri):
            raise AlreadyExists(uri)
        os.rename(unfinished, uri)
    finally:
        os.close(lock)


def _sync_folder(uri: str) -> None:
    """Make a new name survive a power cut, where the file system knows how to."""
    folder = os.open(os.path.dirname(uri), os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _sorted(uri: str) -> Iterator[None]:
    """Turn an error of reading into one of the contract's."""
    try:
        yield
    except OSError as error:
        if error.errno in _ABSENT:
            raise NotFound(f"{uri} does not exist") from None
        if error.errno in _REFUSED:
            raise Forbidden(f"{uri} may not be read by this user") from None
        if error.errno in (errno.EISDIR, errno.EINVAL, errno.ENXIO):
            raise Unreadable(f"{uri} is not a readable file: {error.strerror}") from None
        _environment(error, uri)
    except ValueError:
        raise NotFound(f"{uri!r} is no path") from None


@contextmanager
def _written(uri: str) -> Iterator[None]:
    """Turn an error of writing into a fault of the environment."""
    try:
        yield
    except OSError as error:
        _environment(error, uri)


def _environment(error: OSError, uri: str) -> NoReturn:
    mend = _MEND.get(error.errno or 0, "check that disk or mount, then give the same command")
    raise EnvironmentFault(f"{uri}: {error.strerror or error}", mend) from None
