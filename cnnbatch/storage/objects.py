"""Buckets (``s3://``, ``gs://``, ``az://``) through obstore, which retries and refreshes credentials."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.records import Span
from cnnbatch.storage import faults
from cnnbatch.storage.address import scheme
from cnnbatch.storage.contract import (
    AlreadyExists,
    Changed,
    Entry,
    NotFound,
    StorageOptions,
    TooLarge,
    Unreadable,
)
from cnnbatch.storage.credentials import aws_credentials
from cnnbatch.storage.ranges import range_file

if TYPE_CHECKING:
    from obstore.store import AzureConfig, GCSConfig, S3Config

_PAGE = 1000  # what stores give a request
_UPLOAD = 10  # an upload may take so many times longer than a read
_RETRIES_S = 280  # obstore signs once for all attempts: below the five minutes that a signature lives

Result = TypeVar("Result")
_ERRORS = (exceptions.BaseError, OSError, ValueError)


class ObjectStorage:
    """Buckets; one client for each bucket and for reads and writes, made on first use."""

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        self._stores: dict[tuple[str, bool], ObjectStore] = {}
        self._served: dict[str, float] = {}
        self._lock = threading.Lock()

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the objects below a prefix, page by page as the store lists them."""
        root, prefix = _split(uri)
        offset = _split(after)[1] if after is not None else None
        last, any_found = "", after is not None
        try:
            for page in obstore.list(self._store(uri), prefix or None, offset=offset, chunk_size=_PAGE):
                for meta in page:
                    path = meta["path"]
                    # The marker of an empty folder, "a/", is given as "a": out of its place, and no file.
                    if meta["size"] == 0 and (path == prefix or path < last):
                        continue
                    if path <= last:
                        raise _unordered(uri)
                    last, any_found = path, True
                    yield Entry(f"{root}/{path}", meta["size"], meta["e_tag"])
        except _ERRORS as error:
            raise faults.of_listing(error, uri, scheme(uri)) from None
        if not any_found:
            raise NotFound(f"{uri} holds no object")

    def read(self, uri: str, span: Span | None, limit: int | None) -> bytes:
        """Return an object's bytes."""
        if span is not None and span.length == 0:
            return b""

        def fetch(store: ObjectStore, path: str) -> bytes:
            if span is not None:
                return obstore.get_range(store, path, start=span.offset, length=span.length).to_bytes()
            found = obstore.get(store, path)
            if limit is not None and found.meta["size"] > limit:
                raise TooLarge(f"{found.meta['size']:,} bytes, at most {limit:,} are read")
            return found.bytes().to_bytes()

        return self._ask(uri, fetch)

    def head(self, uri: str) -> Entry:
        """Return size and etag."""
        try:
            meta = obstore.head(self._store(uri), _path(uri))
        except _ERRORS as error:
            if faults.Answer.of(error).status not in (400, 403):
                raise faults.sort(error, uri, scheme(uri), False, False) from None
            # An answer to HEAD has no body, hence no reason; an answer to GET has.
            meta = self._ask(uri, lambda store, path: obstore.get(store, path).meta)
        return Entry(uri, meta["size"], meta["e_tag"])

    def open(self, uri: str) -> BinaryIO:
        """Open an object for reading at any place."""
        return range_file(lambda span: self.read(uri, span, None), self.head(uri).size)

    def create(self, uri: str, data: bytes | Path) -> str:
        """Put a new object, in one request that the store refuses when there is one."""
        for attempt in range(self._options.retries + 1):
            try:
                return self._put(uri, data, "create")
            except AlreadyExists:
                with suppress(NotFound):
                    self.head(uri)
                    raise
            time.sleep(min(0.1 * 2**attempt, 5))  # refused for another writer that failed after all
        raise AlreadyExists(uri)

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Put an object over the one with ``etag``, in one request that the store refuses otherwise."""
        version: dict[str, str | None] = {"e_tag": etag}
        if scheme(uri) == "gs":  # Google compares generations, not etags
            try:
                meta = obstore.head(self._store(uri), _path(uri))
            except FileNotFoundError:
                raise Changed(uri) from None
            if meta["e_tag"] != etag:
                raise Changed(uri)
            version["version"] = meta["version"]
        return self._put(uri, data, version)

    def put(self, uri: str, data: bytes | Path) -> None:
        """Put an object, over whatever is there."""
        self._put(uri, data, "overwrite")

    def delete(self, uri: str) -> None:
        """Remove an object."""
        try:
            obstore.delete(self._store(uri, writing=True), _path(uri))
        except FileNotFoundError:
            return
        except _ERRORS as error:
            raise faults.sort(error, uri, scheme(uri), True, False) from None

    def answers(self, uri: str) -> bool:
        """Say whether the bucket has given this process an object."""
        return _split(uri)[0] in self._served

    def _ask(self, uri: str, fetch: Callable[[ObjectStore, str], Result]) -> Result:
        began = time.monotonic()
        root, path = _split(uri)[0], _path(uri)
        try:
            found = fetch(self._store(uri), path)
        except _ERRORS as error:
            since = self._served.get(root, 0) > began
            raise faults.sort(error, uri, scheme(uri), False, since) from None
        self._served[root] = time.monotonic()
        return found

    def _put(self, uri: str, data: bytes | Path, mode: Any) -> str:
        store, path = self._store(uri, writing=True), _path(uri)
        whole = None if mode == "overwrite" else False
        try:
            return obstore.put(store, path, data, mode=mode, use_multipart=whole)["e_tag"] or ""
        except _ERRORS as error:
            raise faults.sort(error, uri, scheme(uri), True, False) from None

    def _store(self, uri: str, writing: bool = False) -> ObjectStore:
        root = _split(uri)[0]
        with self._lock:
            if (root, writing) not in self._stores:
                self._stores[root, writing] = _build(root, self._options, writing)
            return self._stores[root, writing]


def _split(uri: str) -> tuple[str, str]:
    """Return the bucket's address and the path inside it."""
    kind = scheme(uri)
    bucket, _, path = uri[len(kind) + 3 :].partition("/")
    return f"{kind}://{bucket}", path


def _path(uri: str) -> str:
    """Return the path of an object inside its bucket."""
    path = _split(uri)[1]
    if not path:
        raise Unreadable(f"{uri} is a bucket, an object in it was expected")
    return path


def _build(root: str, options: StorageOptions, writing: bool) -> ObjectStore:
    kind, bucket = root.split("://")
    if not bucket:
        raise UserError(f"{root} names no bucket; expected {kind}://BUCKET/PATH")
    longer = _UPLOAD if writing else 1
    shared: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=options.timeout_s * longer),
            "connect_timeout": timedelta(seconds=min(10.0, options.timeout_s)),
            "allow_http": _endpoint(options).startswith("http://"),
        },
        "retry_config": {
            "max_retries": options.retries,
            "retry_timeout": timedelta(
                seconds=min(_RETRIES_S, options.timeout_s * longer * (options.retries + 1))
            ),
        },
    }
    try:
        return _STORES[kind](bucket, options, shared)
    except _ERRORS as error:
        raise EnvironmentFault(f"{root}: {faults.Answer.of(error).text}", faults.LOGIN[kind]) from None


def _endpoint(options: StorageOptions) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return options.endpoint or next((os.environ[name] for name in names if name in os.environ), "")


def _s3(bucket: str, options: StorageOptions, shared: Mapping[str, Any]) -> ObjectStore:
    config: S3Config = {"disable_bulk_delete": True}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    if options.region:
        config["region"] = options.region
    if options.requester_pays:
        config["request_payer"] = True
    if options.anonymous:
        config["skip_signature"] = True
        return S3Store(bucket, config=config, **shared)
    provider = aws_credentials(f"s3://{bucket}")
    return S3Store(bucket, config=config, credential_provider=provider, **shared)


def _gs(bucket: str, options: StorageOptions, shared: Mapping[str, Any]) -> ObjectStore:
    _only_s3(options, "gs")
    config: GCSConfig = {"skip_signature": options.anonymous}
    if options.endpoint:
        config["base_url"] = options.endpoint
    return GCSStore(bucket, config=config, **shared)


def _az(bucket: str, options: StorageOptions, shared: Mapping[str, Any]) -> ObjectStore:
    _only_s3(options, "az")
    config: AzureConfig = {"skip_signature": options.anonymous}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    return AzureStore(bucket, config=config, **shared)


def _only_s3(options: StorageOptions, kind: str) -> None:
    for name in ("requester_pays", "region"):
        if getattr(options, name):
            raise UserError(
                f"storage.{name} is known for s3:// only, not for {kind}://\n  what to do: leave it out"
            )


_STORES: Mapping[str, Callable[[str, StorageOptions, Mapping[str, Any]], ObjectStore]] = {
    "s3": _s3,
    "gs": _gs,
    "az": _az,
}


def _unordered(uri: str) -> UserError:
    return UserError(
        f"{uri}: a listing by name was expected, this store's is in another (S3 Express and Azure's"
        " hierarchical accounts do that), so it could not go on where it was left\n"
        "  what to do: give a list of addresses instead"
    )
