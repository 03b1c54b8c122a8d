"""Buckets (``s3://``, ``gs://``, ``az://``) through obstore, which signs, and refreshes credentials."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from cnnbatch.errors import EnvironmentFault, UserError
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
from cnnbatch.storage.retrying import attempts, pause_s
from cnnbatch.storage.serving import Serving
from cnnbatch.types import Span

if TYPE_CHECKING:
    from obstore.store import AzureConfig, GCSConfig, S3Config

_PAGE = 1000  # what stores give a request
_UPLOAD = 10  # an upload may take so many times longer than a read
_IN_PIECES = 64 << 20  # bytes; larger objects that may be overwritten are uploaded in pieces
_COMPARED = 8 << 20  # bytes that are compared at once
_RETRIES_S = 280  # obstore signs a piece once for all attempts: below the five minutes a signature lives

_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")  # of any store; obstore ends the process for others

_Use = Literal["read", "write", "upload"]
Result = TypeVar("Result")
_ERRORS = (exceptions.BaseError, OSError, ValueError)


class ObjectStorage:
    """Buckets; clients for each bucket and for reads, writes and uploads in pieces, made on first use.

    Each request is made here as often as the options allow, so that a put whose answer was lost can be looked
    at again; only the pieces of a large upload are tried again by obstore.
    """

    def __init__(self, options: StorageOptions) -> None:
        self._options = options
        self._stores: dict[tuple[str, _Use], ObjectStore] = {}
        self.serving = Serving(self._is_readable)
        self._lock = threading.Lock()

    def list(self, uri: str, after: str | None) -> Iterator[Entry]:
        """Yield the objects below a prefix, page by page as the store lists them; goes on where it broke."""
        failed, behind = 0, after
        while True:
            try:
                for entry in self._list(uri, behind):
                    yield entry
                    failed, behind = 0, entry.uri
                break
            except _ERRORS as error:
                failed += 1
                if failed > self._options.retries or not faults.passes(error):
                    raise faults.of_listing(error, uri, scheme(uri)) from None
            time.sleep(pause_s(failed))
        if behind is None:
            raise NotFound(f"{uri} holds no object")

    def _list(self, uri: str, after: str | None) -> Iterator[Entry]:
        root, prefix = _split(uri)
        offset = _split(after)[1] if after is not None else None
        last = ""
        for page in obstore.list(self._store(uri), prefix or None, offset=offset, chunk_size=_PAGE):
            for meta in page:
                path = meta["path"]
                # The marker of an empty folder, "a/", is given as "a": out of its place, and no file.
                if meta["size"] == 0 and (path == prefix or path < last):
                    continue
                if path <= last:
                    raise _unordered(uri)
                last = path
                yield Entry(f"{root}/{path}", meta["size"], meta["e_tag"])

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

        data = self._ask(uri, fetch)
        if data:
            self.serving.note(_split(uri)[0], uri)
        return data

    def head(self, uri: str) -> Entry:
        """Return size and etag."""
        meta = self._ask(uri, _head)
        return Entry(uri, meta["size"], meta["e_tag"])

    def open(self, uri: str) -> BinaryIO:
        """Open an object for reading at any place."""
        return range_file(lambda span: self.read(uri, span, None), self.head(uri).size)

    def create(self, uri: str, data: bytes | Path) -> str:
        """Put a new object, in one request that the store refuses when there is one."""
        return self._put_if(uri, data, "create", lambda found: found is None, AlreadyExists(uri))

    def replace(self, uri: str, data: bytes | Path, etag: str) -> str:
        """Put an object over the one with ``etag``, in one request that the store refuses otherwise."""
        version = self._version(uri, etag)
        return self._put_if(
            uri, data, version, lambda found: found is not None and found.etag == etag, Changed(uri)
        )

    def put(self, uri: str, data: bytes | Path) -> None:
        """Put an object, over whatever is there."""
        error = Exception()
        for _ in attempts(self._options):
            try:
                self._put(uri, data, "overwrite")
                return
            except _ERRORS as broken:
                error = self._again(broken, uri)
        raise faults.sort(error, uri, scheme(uri), writing=True)

    def delete(self, uri: str) -> None:
        """Remove an object."""
        error = Exception()
        for _ in attempts(self._options):
            try:
                obstore.delete(self._store(uri, "write"), _path(uri))
                return
            except FileNotFoundError:
                return
            except _ERRORS as broken:
                error = self._again(broken, uri)
        raise faults.sort(error, uri, scheme(uri), writing=True)

    def answers(self, uri: str) -> bool | None:
        """Say whether the bucket still gives what it gave this process before."""
        return self.serving.still(_split(uri)[0])

    def _ask(self, uri: str, fetch: Callable[[ObjectStore, str], Result]) -> Result:
        error = Exception()
        for _ in attempts(self._options):
            try:
                return fetch(self._store(uri), _path(uri))
            except _ERRORS as broken:
                error = broken
                if not faults.passes(broken):
                    break
        busy = faults.Answer.of(error).status in faults.BUSY
        served = faults.passes(error) and not busy and self.serving.still(_split(uri)[0])
        raise faults.sort(error, uri, scheme(uri), served=bool(served))

    def _put_if(
        self,
        uri: str,
        data: bytes | Path,
        mode: Any,
        holds: Callable[[Entry | None], bool],
        refusal: Exception,
    ) -> str:
        """Put an object on a condition; raise ``refusal`` where the store says that it does not hold.

        Where the answer to a put was lost and the object has the same bytes afterwards, it is ours. ``holds``
        says of what is found whether the condition holds all the same: the refusal was for another request
        under way, which failed.
        """
        unsure, error = False, Exception()
        for _ in attempts(self._options):
            try:
                return self._put(uri, data, mode)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as conflict:
                error, found = conflict, self._find(uri)
                if holds(found):
                    continue
                if found is not None and unsure and self._has(found, data):
                    return found.etag or ""
                raise refusal from None
            except _ERRORS as broken:
                error, unsure = self._again(broken, uri), True
        if unsure and (found := self._find(uri)) is not None and self._has(found, data):
            return found.etag or ""
        raise faults.sort(error, uri, scheme(uri), writing=True)

    def _again(self, error: Exception, uri: str) -> Exception:
        """Return an error of writing that another attempt may not have; raise any other."""
        if not faults.passes(error):
            raise faults.sort(error, uri, scheme(uri), writing=True) from None
        return error

    def _is_readable(self, uri: str) -> bool:
        """Say whether an object is given, by the same kind of request as images are; its bytes are left."""
        for _ in attempts(self._options):
            try:
                return bool(obstore.get(self._store(uri), _path(uri)).meta)
            except _ERRORS as error:
                if not faults.passes(error):
                    return False
        return False

    def _find(self, uri: str) -> Entry | None:
        with suppress(NotFound):
            return self.head(uri)
        return None

    def _has(self, found: Entry, data: bytes | Path) -> bool:
        """Say whether an object has just these bytes."""
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        if found.size != size:
            return False
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as own:
            spans = (Span(start, min(_COMPARED, size - start)) for start in range(0, size, _COMPARED))
            return all(self.read(found.uri, span, None) == own.read(span.length) for span in spans)

    def _version(self, uri: str, etag: str) -> dict[str, str | None]:
        """Return what a store compares when an object is to be replaced."""
        if scheme(uri) != "gs":
            return {"e_tag": etag}
        try:  # Google compares generations, not etags
            meta = self._ask(uri, obstore.head)
        except NotFound:
            raise Changed(uri) from None
        if meta["e_tag"] != etag:
            raise Changed(uri)
        return {"e_tag": etag, "version": meta["version"]}

    def _put(self, uri: str, data: bytes | Path, mode: Any) -> str:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        in_pieces = mode == "overwrite" and size > _IN_PIECES
        store = self._store(uri, "upload" if in_pieces else "write")
        return obstore.put(store, _path(uri), data, mode=mode, use_multipart=in_pieces)["e_tag"] or ""

    def _store(self, uri: str, use: _Use = "read") -> ObjectStore:
        root = _split(uri)[0]
        with self._lock:
            if (root, use) not in self._stores:
                self._stores[root, use] = _build(root, self._options, use)
            return self._stores[root, use]


def _head(store: ObjectStore, path: str) -> obstore.ObjectMeta:
    try:
        return obstore.head(store, path)
    except _ERRORS as error:
        if faults.Answer.of(error).status not in (400, 403):
            raise
        # An answer to HEAD has no body, hence no reason; an answer to GET has.
        return obstore.get(store, path).meta


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


def _build(root: str, options: StorageOptions, use: _Use) -> ObjectStore:
    kind, _, bucket = root.partition("://")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{root} names no bucket; expected {kind}://BUCKET/PATH")
    longer = 1 if use == "read" else _UPLOAD
    shared: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=options.timeout_s * longer),
            "connect_timeout": timedelta(seconds=min(10.0, options.timeout_s)),
            "allow_http": _endpoint(options).startswith("http://"),
        },
        "retry_config": {
            "max_retries": options.retries if use == "upload" else 0,
            "retry_timeout": timedelta(seconds=_RETRIES_S),
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
