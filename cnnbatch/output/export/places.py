"""Where exported files lie: never outside the folder asked for, never over something, never two in one."""

from __future__ import annotations

import errno
import hashlib
import posixpath
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.images.formats import SUFFIXES
from cnnbatch.storage import AlreadyExists, Forbidden, NotFound, Storage, join, redact, scheme
from cnnbatch.storage.unique import unique_keys

_WRITABLE = ("", "s3", "gs", "az", "memory")
_WRITERS = 16
_WAITING = 256  # files that wait for a writer
_LONGEST = 240  # bytes of one name, so that a suffix fits into the 255 of most file systems
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")  # a backslash parts folders on Windows


def path_of(key: str, folder: str) -> str:
    """Return the path of an image's file below the exported folder, without a suffix.

    It is the key without the image's suffix, and without a leading ``folder``, which the format has for
    the images. What could lead elsewhere (``..``, an absolute path, control characters) is written as
    ``%2E%2E`` or left out, a name that no file system takes is cut and ends in a digest.
    """
    stem, suffix = posixpath.splitext(key)
    names = [_safe(name) for name in (stem if suffix.lower() in SUFFIXES else key).split("/") if name]
    return "/".join(names[1:] if names[:1] == [folder] and len(names) > 1 else names) or "_"


def encoded(name: str, marks: re.Pattern[str] = _UNSAFE) -> str:
    """Return ``name`` with all ``marks`` as ``%`` and two hexadecimal digits."""
    return marks.sub(lambda found: f"%{ord(found[0]):02X}", name)


def _safe(name: str) -> str:
    name = name.replace(".", "%2E") if name in (".", "..") else encoded(name)
    data = name.encode()
    if len(data) <= _LONGEST:
        return name
    return f"{data[: _LONGEST - 33].decode(errors='ignore')}~{hashlib.sha256(data).hexdigest()[:32]}"


def require_unique(keys: Callable[[], Iterator[str]], path: Callable[[str], str], suffix: str) -> None:
    """Insist that no two of ``keys`` have one ``path``; raises UserError that names both."""
    with unique_keys() as seen:
        pairs = (seen.add(path(key), number) for number, key in enumerate(keys()))
        pair = next(filter(None, pairs), None) or seen.duplicate()
    if pair is not None:
        first, second = (next(islice(keys(), number, None)) for number in pair)
        raise UserError(
            f"{first!r} and {second!r} would both be {path(first)}{suffix}: this format tells images apart "
            "by their names without suffix\n"
            "  what to do: rename one of the images, or give --format coco or csv"
        )


def require_free(storage: Storage, *uris: str) -> None:
    """Insist that ``uris`` can be written, and are neither files nor folders with files; raises UserError."""
    for uri in uris:
        if scheme(uri) not in _WRITABLE:
            raise UserError(f"--to: expected a folder of this machine or of a bucket, got {redact(uri)}")
        if storage.exists(uri) or _holds_files(storage, uri):
            raise UserError(
                f"--to: expected a path that does not exist yet, {redact(uri)} is there already\n"
                "  what to do: remove it, or give another path"
            )


def _holds_files(storage: Storage, uri: str) -> bool:
    try:
        return next(iter(storage.list(uri)), None) is not None
    except NotFound:
        return False
    except Forbidden as error:
        raise EnvironmentFault(str(error), "give the right to list that place") from None


def file_at(to: str, suffix: str, name: str) -> str:
    """Return the file that ``to`` names by its ``suffix``, else the file ``name`` in the folder ``to``."""
    return to if to.lower().endswith(suffix) else join(to, name)


@contextmanager
def spool() -> Iterator[Path]:
    """Give an empty folder on the local disk, gone at the end; a full disk is an EnvironmentFault."""
    try:
        with tempfile.TemporaryDirectory(prefix="cnnbatch-export-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise
        raise EnvironmentFault(
            f"the local disk refused a part of the export: {error.strerror}",
            "free some space there, or point TMPDIR at a larger disk",
        ) from error


class Tree:
    """Many small files below a folder, written several at a time; all are there when its block ends.

    At most so many are ``waiting`` for that in memory.
    """

    def __init__(self, storage: Storage, root: str, waiting: int = _WAITING) -> None:
        self._storage, self._root, self._most = storage, root, waiting
        self._pool = ThreadPoolExecutor(_WRITERS, "export")
        self._waiting = deque[Future[None]]()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def write(self, path: str, content: str | bytes) -> None:
        """Write a file; a failure is raised by a later call, or at the end of the block."""
        if len(self._waiting) >= self._most:
            self._waiting.popleft().result()
        data = content.encode() if isinstance(content, str) else content
        self._waiting.append(self._pool.submit(self._create, path, data))

    def put(self, path: str, file: Path) -> None:
        """Copy a large file of the local disk, at once."""
        self._storage.put(join(self._root, path), file)

    def _create(self, path: str, data: bytes) -> None:
        uri = join(self._root, path)
        try:
            self._storage.create(uri, data)
        except AlreadyExists:
            if self._storage.read(uri) != data:  # else it is ours, written by a request whose answer was lost
                raise UserError(
                    f"{redact(uri)} was there before it was written\n"
                    "  what to do: give a place of its own; a file system that takes a.txt and A.txt for "
                    "one can't hold images whose names differ by that alone"
                ) from None
