"""AWS S3 Inventory as the listing: entries come from its files, so that no bucket is too large to list.

An inventory is not sorted by key: its own order is the listing's. To go on behind an image its files are
read again from the beginning, since nothing marks the image's place in them.
"""

from __future__ import annotations

import gzip
import json
import posixpath
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_plus

import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from cnnbatch.errors import UserError
from cnnbatch.sources.lists.rows import Csv, Form, ParquetForm
from cnnbatch.sources.lists.source import opened
from cnnbatch.storage import (
    Allowed,
    Entry,
    Forbidden,
    NotFound,
    Storage,
    TooLarge,
    Unreadable,
    join,
    normalize,
    parent,
    redact,
    scheme,
)

INVENTORY = "inventory"
"""Column of a ref that says which inventory it comes from; a listing goes on in the order of that one."""

COLUMNS = pa.schema([(INVENTORY, pa.string())])
"""`Source.columns` of files that an inventory lists."""

_MOST_BYTES = 4 << 20  # of a manifest; those of a billion objects have some hundred thousand
_GZIP = b"\x1f\x8b"
_NEEDED = {"key": "Key", "etag": "ETag"}
_KNOWN = (*_NEEDED, "size", "islatest", "isdeletemarker")
_CONFIGURE = "in the bucket's Management, Inventory configurations"


class _File(BaseModel):
    key: str


class _Manifest(BaseModel):
    """The fields of ``manifest.json`` that are read; its buckets are names or ARNs."""

    source: str = Field(alias="sourceBucket")
    destination: str = Field(alias="destinationBucket")
    format: str = Field(alias="fileFormat")
    file_schema: str = Field(alias="fileSchema")
    files: tuple[_File, ...]


@dataclass(frozen=True)
class Inventory:
    """What one bucket held when its inventory was made: the latest version of each object.

    ``mark`` tells inventories apart, by a digest of the manifest; ``files`` are read in their order, all in
    one ``form``, by ``listing``: the storage as the manifest may use it.
    """

    storage: Storage
    url: str
    mark: str
    bucket: str
    files: tuple[str, ...]
    form: Form
    listing: Storage

    def list(self, uri: str, after: str | None = None) -> Iterator[Entry]:
        """Yield the objects below the folder ``uri``, as `Storage.list` does but in the inventory's order."""
        below = uri.rstrip("/") + "/"
        behind, found = after is None, after is not None
        for entry in self._entries():
            if behind and entry.uri.startswith(below):
                found = True
                yield entry
            behind = behind or entry.uri == after
        if not behind:
            raise UserError(
                f"{redact(self.url)} does not hold {after}, behind which the listing goes on\n"
                "  what to do: give the inventory that it began with, or a new output"
            )
        if not found:
            raise UserError(
                f"input.inventory: {redact(self.url)} lists nothing below {redact(uri)}\n"
                f"  what to do: check input.url, and the inventory's own prefix {_CONFIGURE}"
            )

    def head(self, uri: str) -> Entry:
        """Ask the storage itself."""
        return self.storage.head(uri)

    def columns(self, file: BinaryIO, where: str) -> Mapping[str, str]:
        """Return a file's own names of the columns that are read, by their names in one spelling."""
        names = {name.replace("_", "").lower(): name for name in self.form.header(file, where).names}
        if missing := [shown for name, shown in _NEEDED.items() if name not in names]:
            raise UserError(
                f"{where}: expected the columns {' and '.join(_NEEDED.values())}, "
                f"{' and '.join(missing)} is missing; its columns: {', '.join(names.values())}\n"
                f"  what to do: add it as a field of the inventory, {_CONFIGURE}"
            )
        return {name: names[name] for name in _KNOWN if name in names}

    def check(self) -> None:
        """Raise UserError where the first file can't be read; later ones are read when their turn comes."""
        for url in self.files[:1]:
            with opened(self.listing, url) as file:
                self.columns(_plain(file), redact(url))

    def _entries(self) -> Iterator[Entry]:
        for url in self.files:
            try:
                yield from self._entries_of(url)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UserError(
                    f"{redact(url)} is damaged: {error}\n  what to do: fetch it again, or wait for the next"
                    " inventory"
                ) from None

    def _entries_of(self, url: str) -> Iterator[Entry]:
        with opened(self.listing, url) as stored:
            file = _plain(stored)
            names = self.columns(file, redact(url))
            for place, row in self.form.rows(file, list(names.values()), redact(url)):
                cells = {name: row[own] for name, own in names.items()}
                if not cells["key"] or not re.fullmatch(r"\d*", str(cells.get("size") or "")):
                    raise UserError(
                        f"{redact(url)}, {self.form.place} {place}: a key and a size were expected, got "
                        f"{str(cells['key'])[:100]!r} and {str(cells.get('size'))[:100]!r}\n"
                        "  what to do: fetch the file again, or wait for the next inventory"
                    )
                if _is(cells.get("islatest"), True) and not _is(cells.get("isdeletemarker"), False):
                    yield self._entry(cells)

    def _entry(self, cells: Mapping[str, Any]) -> Entry:
        key, etag = str(cells["key"]), cells["etag"]
        if isinstance(self.form, Csv):  # there alone keys are encoded, a space as "+"
            key = unquote_plus(key)
        quoted = f'"{str(etag).strip(chr(34))}"' if etag else None  # as a store's listing has it
        return Entry(f"{self.bucket}/{key}", int(cells.get("size") or 0), quoted)


def open_inventory(
    url: str, storage: Storage, urls: Sequence[str], allow: Sequence[Allowed] = ()
) -> Inventory:
    """Return the inventory whose ``manifest.json`` lies at ``url``, of the bucket that ``urls`` are in.

    Its files lie where AWS has put them, in the destination bucket; those of a manifest that was copied out
    of S3 in the folder ``data`` beside its own folder (as AWS has it), below that folder, or in it.

    Raises:
        UserError: it is no manifest, in another format, of another bucket, or lacks a column.
    """
    url = normalize(url)
    data, manifest = _read(url, storage)
    bucket = f"s3://{_name(manifest.source)}"
    for address in map(normalize, urls):
        if address != bucket and not address.startswith(f"{bucket}/"):
            raise UserError(
                f"input.inventory: {redact(url)} is of {bucket}, and input.url is {redact(address)}\n"
                "  what to do: give the inventory of that bucket, or leave it out"
            )
    mark = f"{redact(url)}#{blake2b(data, digest_size=8).hexdigest()}"
    files = _files(url, storage, manifest)
    listing = storage.for_list(url, allow)
    found = Inventory(storage, url, mark, bucket, files, _form(url, manifest), listing)
    found.check()
    return found


def require_same(after: Mapping[str, Any], inventory: Inventory | None) -> None:
    """Refuse to go on behind an image with these columns in another order than its listing had."""
    begun, now = after.get(INVENTORY), inventory.mark if inventory else None
    if (begun or "").rpartition("#")[2] != (now or "").rpartition("#")[2]:
        raise UserError(
            f"input.inventory: the listing of the input began with {begun or 'no inventory'} and is not done;"
            f" got {now or 'no inventory'}, which has another order\n"
            "  what to do: give the one it began with; then --new takes another"
        )


def _read(url: str, storage: Storage) -> tuple[bytes, _Manifest]:
    try:
        data = storage.read(url, limit=_MOST_BYTES)
        return data, _Manifest.model_validate(json.loads(data))
    except (NotFound, Forbidden, Unreadable, TooLarge) as error:
        why = f"cannot be read: {error}"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = f"is no manifest of an inventory: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError):
        why = "is no manifest of an inventory: it is not JSON"
    raise UserError(
        f"input.inventory: {redact(url)} {why}\n"
        "  what to do: give the address of a manifest.json that S3 Inventory wrote, as in "
        "s3://DESTINATION/PREFIX/BUCKET/CONFIG/2026-11-24T01-00Z/manifest.json"
    )


def _form(url: str, manifest: _Manifest) -> Form:
    kind = manifest.format.lower()
    if kind == "parquet":
        return ParquetForm()
    if kind == "csv":
        return Csv(",", tuple(name.strip() for name in manifest.file_schema.split(",")))
    raise UserError(
        f"input.inventory: {redact(url)} is in {manifest.format}, expected Parquet or CSV\n"
        f"  what to do: set its output format to Apache Parquet, {_CONFIGURE}, and wait for the next one"
    )


def _files(url: str, storage: Storage, manifest: _Manifest) -> tuple[str, ...]:
    """Return the addresses of the files."""
    keys = [file.key for file in manifest.files]
    if scheme(url) == "s3":
        return tuple(f"s3://{_name(manifest.destination)}/{key}" for key in keys)
    names = [posixpath.basename(key) for key in keys]  # no path of a manifest leads out of its folder
    here = parent(url)
    for folder in (join(parent(here), "data"), join(here, "data"), here):
        if not names or storage.exists(join(folder, names[0])):
            return tuple(join(folder, name) for name in names)
    raise UserError(
        f"input.inventory: {redact(url)} names the file {names[0]}, which is neither in the folder data "
        "beside that of the manifest, nor in data below it, nor beside the manifest\n"
        "  what to do: copy the files there, too, or give the manifest's address in S3"
    )


def _name(bucket: str) -> str:
    """Return the name in an ARN, ``arn:aws:s3:::NAME``, or the name itself."""
    return bucket.rpartition(":")[2]


def _plain(file: BinaryIO) -> BinaryIO:
    """Return a file as it reads without gzip, if it is so compressed."""
    compressed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file


def _is(cell: Any, otherwise: bool) -> bool:
    """Return a cell as yes or no; ``otherwise`` where the inventory does not say."""
    return otherwise if cell is None or cell == "" else str(cell).lower() == "true"
