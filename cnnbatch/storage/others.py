"""Whatever else fsspec reaches (``memory://``, ``hf://``, ``ftp://``): to read; only memory is written to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.records import Span
from cnnbatch.storage.address import redact
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
from cnnbatch.storage.ranges import range_file

_MEMORY = threading.Lock()  # one for the process, as the memory is
_OWN = ("s3", "gs", "az", "http", "https", "file", "memory")

Result = TypeVar("Result")


class Others:
    """One scheme of fsspec; etags are what the file system tells of a file."""

    def __init__(self, kind: str, options: StorageOptions) -> None:
        self._kind, self._options = kind, options
        self._files = _filesystem(kind)

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the files below a folder; fsspec has no pages, so their names are held at once."""
        found: dict[str, Any] = self._ask(uri, lambda path: self._files.find(path, detail=True))
        if not found:
            raise NotFound(f"{uri} holds no file")
        for path in sorted(found):
            entry = Entry(self._uri(path), int(found[path].get("size") or 0), self._etag(path, found[path]))
            if after is None or entry.uri > after:
                yield entry

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return a file's bytes."""
        if limit is not None and span is None and (size := self.head(uri).size) > limit:
            raise TooLarge(f"{size:,} bytes, at most {limit:,} are read")
        start, end = (span.offset, span.offset + span.length) if span else (None, None)
        return bytes(self._ask(uri, lambda path: self._files.cat_file(path, start=start, end=end)))

    def head(self, uri: str) -> Entry:
        """Return size and etag."""
        info = self._ask(uri, lambda path: self._files.info(path))
        if info.get("type") == "directory":
            raise Unreadable(f"{redact(uri)} is a folder, a file was expected")
        return Entry(uri, int(info.get("size") or 0), self._etag(self._path(uri), info))

    def open(self, uri: str) -> BinaryIO:
        """Open a file for reading at any place."""
        return range_file(lambda span: self.read(uri, span, None), self.head(uri).size)

    def create(self, uri: str, data: bytes | Path) -> str:
        """Write a new file."""
        with self._writable(uri):
            if self._files.exists(self._path(uri)):
                raise AlreadyExists(uri)
            return self._write(uri, data)

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Write over the file with ``etag``."""
        with self._writable(uri):
            path = self._path(uri)
            if not self._files.exists(path) or self._etag(path, {}) != etag:
                raise Changed(uri)
            return self._write(uri, data)

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write a file."""
        with self._writable(uri):
            self._write(uri, data)

    def delete(self, uri: str) -> None:
        """Remove a file."""
        with self._writable(uri):
            if self._files.exists(self._path(uri)):
                self._files.rm_file(self._path(uri))

    def answers(self, uri: str) -> bool:
        """Say yes: nothing is known of the credentials of other storages."""
        return True

    def _write(self, uri: str, data: bytes | Path) -> str:
        path = self._path(uri)
        self._files.pipe_file(path, data.read_bytes() if isinstance(data, Path) else data)
        return self._etag(path, {}) or ""

    def _writable(self, uri: str) -> threading.Lock:
        if self._kind != "memory":
            raise UserError(
                f"{redact(uri)}: {self._kind}:// cannot refuse to overwrite, so results could be lost\n"
                "  what to do: give a folder, or an address of s3://, gs:// or az://"
            )
        return _MEMORY

    def _etag(self, path: str, info: dict[str, Any]) -> str | None:
        if self._kind == "memory":
            return blake2b(self._files.cat_file(path), digest_size=16).hexdigest()
        told = next(
            (info[name] for name in ("ETag", "etag", "sha256", "mtime", "created") if info.get(name)), None
        )
        return None if told is None else str(told)

    def _path(self, uri: str) -> str:
        return cast(str, self._files._strip_protocol(uri))

    def _uri(self, path: str) -> str:
        return f"{self._kind}://{path.lstrip('/')}"

    def _ask(self, uri: str, ask: Callable[[str], Result]) -> Result:
        """Try again what fails for want of an answer, and sort what fails for good."""
        for attempt in range(self._options.retries + 1):
            try:
                return ask(self._path(uri))
            except FileNotFoundError:
                raise NotFound(f"{redact(uri)} does not exist") from None
            except PermissionError as error:
                raise Forbidden(f"{redact(uri)}: {error.strerror or 'refused'}") from None
            except (IsADirectoryError, NotADirectoryError, ValueError) as error:
                raise Unreadable(f"{redact(uri)}: {type(error).__name__}") from None
            except OSError as error:
                trouble = type(error).__name__
                time.sleep(min(0.1 * 2**attempt, 15))
        raise EnvironmentFault(
            f"{redact(uri)}: the storage does not answer ({trouble})",
            "check the network, then give the same command",
        )


def _filesystem(kind: str) -> Any:
    try:
        return fsspec.filesystem(kind)
    except ValueError:
        near = get_close_matches(kind, [*_OWN, *fsspec.available_protocols()], 1, 0.5)
        hint = f"; did you mean {near[0]}://?" if near else ""
        raise UserError(f"{kind}:// is no known kind of address{hint}\n  known: {', '.join(_OWN)}") from None
    except ImportError as error:
        raise EnvironmentFault(
            f"{kind}:// needs a package that is not installed here ({error})", "install it"
        ) from None
