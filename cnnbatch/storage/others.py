"""Whatever else fsspec reaches (``memory://``, ``hf://``, ``ftp://``): to read; only memory is written to."""

from __future__ import annotations

import ftplib
import io
import threading
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import aiohttp
import fsspec
from fsspec.core import url_to_fs

from cnnbatch.errors import UserError
from cnnbatch.storage.address import place, redact
from cnnbatch.storage.contract import (
    AlreadyExists,
    Changed,
    Entry,
    Forbidden,
    MissingPackage,
    NoAnswer,
    NotFound,
    StorageOptions,
    TooLarge,
    Unreadable,
)
from cnnbatch.storage.ranges import range_file
from cnnbatch.storage.retrying import attempts
from cnnbatch.storage.serving import Serving
from cnnbatch.types import Span

_MEMORY = threading.Lock()  # one for the process, as the memory is
_OWN = ("s3", "gs", "az", "http", "https", "file", "memory")
_BROKEN = (OSError, EOFError, ftplib.error_temp, aiohttp.ClientError)

Result = TypeVar("Result")


class Others:
    """One scheme of fsspec; etags are what the file system tells of a file."""

    def __init__(self, kind: str, options: StorageOptions) -> None:
        _require_known(kind)
        self._kind, self._options = kind, options
        self.serving = Serving(self._is_readable)

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the files below a folder; fsspec has no pages, so their names are held at once."""
        found: dict[str, Any] = self._ask(uri, lambda files, path: files.find(path, detail=True))
        if not found:
            raise NotFound(f"{redact(uri)} holds no file")
        files, root = self._at(uri)
        for path in sorted(found):
            address = self._uri(uri, root, path)
            entry = Entry(address, int(found[path].get("size") or 0), self._etag(files, path, found[path]))
            if after is None or entry.uri > after:
                yield entry

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return a file's bytes."""
        if limit is not None and span is None and (size := self.head(uri).size) > limit:
            raise TooLarge(f"{size:,} bytes, at most {limit:,} are read")
        start, end = (span.offset, span.offset + span.length) if span else (None, None)
        data = bytes(self._ask(uri, lambda files, path: files.cat_file(path, start=start, end=end)))
        self.serving.note(place(uri), uri)
        return data

    def head(self, uri: str) -> Entry:
        """Return size and etag."""
        info, etag = self._ask(uri, self._info)
        if info.get("type") == "directory":
            raise Unreadable(f"{redact(uri)} is a folder, a file was expected")
        return Entry(uri, int(info.get("size") or 0), etag)

    def open(self, uri: str) -> BinaryIO:
        """Open a file for reading at any place."""
        return range_file(lambda span: self.read(uri, span, None), self.head(uri).size)

    def create(self, uri: str, data: bytes | Path) -> str:
        """Write a new file."""
        with self._writable(uri):
            files, path = self._at(uri)
            if files.exists(path):
                raise AlreadyExists(uri)
            return self._write(uri, data)

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Write over the file with ``etag``."""
        with self._writable(uri):
            files, path = self._at(uri)
            if not files.exists(path) or self._etag(files, path, {}) != etag:
                raise Changed(uri)
            return self._write(uri, data)

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write a file."""
        with self._writable(uri):
            self._write(uri, data)

    def delete(self, uri: str) -> None:
        """Remove a file."""
        with self._writable(uri):
            files, path = self._at(uri)
            if files.exists(path):
                files.rm_file(path)

    def answers(self, uri: str) -> bool | None:
        """Say whether the place still gives what it gave before."""
        return self.serving.still(place(uri))

    def _write(self, uri: str, data: bytes | Path) -> str:
        files, path = self._at(uri)
        files.pipe_file(path, data.read_bytes() if isinstance(data, Path) else data)
        return self._etag(files, path, {}) or ""

    def _writable(self, uri: str) -> threading.Lock:
        if self._kind != "memory":
            raise UserError(
                f"{redact(uri)}: {self._kind}:// cannot refuse to overwrite, so results could be lost\n"
                "  what to do: give a folder, or an address of s3://, gs:// or az://"
            )
        return _MEMORY

    def _info(self, files: Any, path: str) -> tuple[dict[str, Any], str | None]:
        info = files.info(path)
        return info, None if info.get("type") == "directory" else self._etag(files, path, info)

    def _etag(self, files: Any, path: str, info: dict[str, Any]) -> str | None:
        if self._kind == "memory":
            return blake2b(files.cat_file(path), digest_size=16).hexdigest()
        known = next(
            (info[name] for name in ("ETag", "etag", "sha256", "mtime", "created") if info.get(name)), None
        )
        return None if known is None else str(known)

    def _at(self, uri: str) -> tuple[Any, str]:
        """Return the file system of an address, which may name a host or a user, and the path in it."""
        return cast(tuple[Any, str], url_to_fs(uri))

    def _uri(self, uri: str, root: str, path: str) -> str:
        """Return the address of a listed ``path`` below ``uri``, whose own path is ``root``."""
        if path.startswith(root):
            return f"{uri.rstrip('/')}/{path[len(root) :].lstrip('/')}"
        return f"{self._kind}://{path.lstrip('/')}"

    def _is_readable(self, uri: str) -> bool:
        try:
            self.head(uri)
        except (NotFound, Forbidden, Unreadable, NoAnswer):
            return False
        return True

    def _ask(self, uri: str, ask: Callable[[Any, str], Result]) -> Result:
        """Try again what fails for want of an answer, and sort what fails for good."""
        shown, trouble = redact(uri), ""
        for _ in attempts(self._options):
            try:
                return ask(*self._at(uri))
            except FileNotFoundError:
                raise NotFound(f"{shown} does not exist") from None
            except PermissionError as error:
                raise Forbidden(f"{shown}: {error.strerror or 'refused'}") from None
            except (IsADirectoryError, NotADirectoryError):
                raise Unreadable(f"{shown} is no file") from None
            except ImportError as error:  # some file systems import what they need when they are first used
                raise _missing(self._kind, error) from None
            except Exception as error:  # Each file system of fsspec has errors of its own.
                trouble = type(error).__name__
                if not _is_broken(error):
                    raise Unreadable(f"{shown}: {self._kind}:// cannot read it ({trouble})") from None
        raise NoAnswer(
            f"{shown}: the storage does not answer ({trouble})",
            "check the network, then give the same command",
        )


def _is_broken(error: Exception) -> bool:
    """Say whether a connection failed; httpx, by which hf:// asks, is not always installed."""
    names = [(base.__module__[:5], base.__name__) for base in type(error).__mro__]
    return isinstance(error, _BROKEN) or ("httpx", "TransportError") in names


def _require_known(kind: str) -> None:
    try:
        found = fsspec.get_filesystem_class(kind)
    except ValueError:
        near = get_close_matches(kind, [*_OWN, *fsspec.available_protocols()], 1, 0.5)
        hint = f"; did you mean {near[0]}://?" if near else ""
        raise UserError(f"{kind}:// is no known kind of address{hint}\n  known: {', '.join(_OWN)}") from None
    except ImportError as error:
        raise _missing(kind, error) from None
    if kind == "ftp" and not hasattr(found, "ftp"):
        found.ftp = io.BytesIO()  # closed when one goes that never was connected; fsspec prints a traceback


def _missing(kind: str, error: ImportError) -> MissingPackage:
    return MissingPackage(
        f"{kind}:// needs a package that is not installed here ({error})\n  what to do: install it"
    )
