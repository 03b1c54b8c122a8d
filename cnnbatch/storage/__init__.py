"""The only importer of fsspec and obstore: reads, lists and writes whole objects by their full address.

Every write is one object, whole or not at all; what a storage cannot do safely is refused, not imitated.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage.address import is_local, join, normalize, parent, place, redact, scheme, without_query
from cnnbatch.storage.contract import (
    AlreadyExists,
    Backend,
    Changed,
    Entry,
    Forbidden,
    MissingPackage,
    NoAnswer,
    NoSuchPlace,
    NotFound,
    NotInstalled,
    OutOfReach,
    StorageOptions,
    TooLarge,
    Unreadable,
    is_page,
)
from cnnbatch.storage.reach import Allowed, Reach, may_name_anything, reach_of
from cnnbatch.types import Span

__all__ = [
    "Allowed",
    "AlreadyExists",
    "Changed",
    "Entry",
    "Forbidden",
    "MissingPackage",
    "NoAnswer",
    "NoSuchPlace",
    "NotFound",
    "NotInstalled",
    "OutOfReach",
    "Storage",
    "StorageOptions",
    "TooLarge",
    "Unreadable",
    "is_local",
    "is_page",
    "join",
    "normalize",
    "parent",
    "place",
    "redact",
    "scheme",
    "without_query",
]


class Storage:
    """All storages behind one set of verbs; thread-safe, and picklable since clients are made on first use.

    Whatever is the environment's fault (credentials refused, storage down after retries, disk full) raises
    `cnnbatch.errors.EnvironmentFault`; what is one object's own raises `NotFound`, `Forbidden`, `Unreadable`
    or `TooLarge`. With a ``reach`` the address must lie within it.
    """

    def __init__(
        self,
        options: StorageOptions = StorageOptions(),  # noqa: B008 - frozen
        reach: Reach | None = None,
    ) -> None:
        self.options = options
        self.reach = reach
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Storage], tuple[StorageOptions, Reach | None]]:
        """Pickle the options and the reach only; clients and sockets stay behind."""
        return Storage, (self.options, self.reach)

    def for_list(self, uri: str, allow: Collection[Allowed]) -> Storage:
        """Return this storage as the list at ``uri`` may use it, which was opened by it before.

        It is itself where the list is the person's own; else what lies beyond the list's reach raises
        `OutOfReach`.
        """
        if may_name_anything(uri):
            return self
        backend, uri = self._resolve(uri)
        private = getattr(backend, "is_private", None)
        return Storage(self.options, reach_of(uri, allow, bool(private and private(uri))))

    def list(self, uri: str, after: str | None = None) -> Iterator[Entry]:
        """Yield every object below the folder ``uri``, ascending by the UTF-8 bytes of its address.

        Streams, page by page; begins behind the address ``after``. Raises `NotFound` for no such folder.
        """
        backend, uri = self._resolve(uri)
        return backend.list(uri, after)

    def read(self, uri: str, span: Span | None = None, limit: int | None = None) -> bytes:
        """Return the bytes of an object, or those of ``span``; more than ``limit`` bytes raise `TooLarge`."""
        backend, uri = self._resolve(uri)
        return backend.read(uri, span, limit)

    def head(self, uri: str) -> Entry:
        """Return the size and etag of an object; raises `NotFound`."""
        backend, uri = self._resolve(uri)
        return backend.head(uri)

    def exists(self, uri: str) -> bool:
        """Say whether there is such an object."""
        try:
            self.head(uri)
        except (NotFound, Unreadable):
            return False
        except OutOfReach:
            raise
        except Forbidden as error:  # a bucket that may not be listed refuses to say what is not there
            raise EnvironmentFault(
                str(error), "give the credentials the right to list that bucket, too"
            ) from None
        return True

    def open(self, uri: str) -> BinaryIO:
        """Open an object for reading at any place, by range requests with a small read-ahead."""
        backend, uri = self._resolve(uri)
        return backend.open(uri)

    def create(self, uri: str, data: bytes | Path) -> str:
        """Write a new object, whole; return its etag. Raises `AlreadyExists`."""
        backend, uri = self._resolve(uri)
        return backend.create(uri, data)

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Write over the object that still has ``etag``; return the new etag. Raises `Changed`."""
        backend, uri = self._resolve(uri)
        return backend.replace(uri, data, etag)

    def put(self, uri: str, data: bytes | Path) -> None:
        """Write an object, whole, over whatever is there."""
        backend, uri = self._resolve(uri)
        backend.put(uri, data)

    def delete(self, uri: str) -> None:
        """Remove an object; an absent one is fine."""
        backend, uri = self._resolve(uri)
        backend.delete(uri)

    def answers(self, uri: str) -> bool | None:
        """Say whether the bucket, host or folder that holds ``uri`` gives what it gave before, asked anew.

        Where it does, `Forbidden` is that one object's own; where it does not, the storage is at fault. None
        where it has given nothing to this process so far.
        """
        backend, uri = self._resolve(uri)
        return backend.answers(uri)

    def others_answer(self, uri: str) -> bool:
        """Say whether another bucket or host, of whatever scheme, still gives what it gave before."""
        with self._lock:
            remote = [backend for kind, backend in self._backends.items() if kind != "memory"]
        known = [serving for backend in remote if (serving := getattr(backend, "serving", None))]
        return any(serving.elsewhere(place(normalize(uri))) for serving in known)

    def _resolve(self, uri: str) -> tuple[Backend, str]:
        """Return who serves an address, and its normal form."""
        uri = normalize(uri)
        if self.reach is not None and (refusal := self.reach.refusal(uri)):
            raise OutOfReach(refusal)
        kind = scheme(uri)
        if kind not in self._backends:
            with self._lock:
                if kind not in self._backends:
                    self._backends[kind] = _build(kind, self.options, self.reach)
        return self._backends[kind], uri


def _build(kind: str, options: StorageOptions, reach: Reach | None) -> Backend:
    """Import and build one backend; each import costs time that most runs need not spend."""
    if kind == "":
        from cnnbatch.storage.local import LocalFiles

        return LocalFiles(options)
    if kind == "package":
        from cnnbatch.storage.package import PackageFiles

        return PackageFiles(options)
    if kind == "dataset":
        raise UserError(
            "dataset:NAME is the whole input of a job, and no place for anything else\n"
            "  what to do: give a path or an object's address here"
        )
    if kind in ("s3", "gs", "az"):
        from cnnbatch.storage.buckets import ObjectStorage

        return ObjectStorage(options)
    if kind in ("http", "https"):
        from cnnbatch.storage.web import Web

        return Web(options, reach)
    from cnnbatch.storage.others import Others

    return Others(kind, options)
