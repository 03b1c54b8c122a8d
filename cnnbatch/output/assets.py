"""Objects that rows point to: a column marked as an asset gives bytes, and a part has their addresses.

An address follows from the image's place in its part and from the bytes, so that the same shard, computed
again, writes nothing twice, and a part never points to what another attempt has made. Assets lie there before
the part that names them is put.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow as pa

from cnnbatch.output.folder import READERS, Output
from cnnbatch.storage import AlreadyExists

FOLDER = "assets"
_SUFFIX = b"asset"


def as_asset(field: pa.Field[Any], suffix: str) -> pa.Field[Any]:
    """Return a column of bytes marked as assets, which become files that end with ``suffix``."""
    known: Any = field.metadata or {}
    return field.with_metadata({**known, _SUFFIX: suffix.encode()})


def as_stored(schema: pa.Schema) -> pa.Schema:
    """Return the columns as a part has them: addresses below the output in the place of assets."""
    fields = [field.with_type(pa.string()) if suffix_of(field) else field for field in schema]
    return pa.schema(fields, schema.metadata)  # type: ignore[arg-type]


def suffix_of(field: pa.Field[Any]) -> str:
    """Return what the files of a column of assets end with; nothing where it is none."""
    return (field.metadata or {}).get(_SUFFIX, b"").decode()


class AssetSink:
    """Writes the assets of an output's rows; ``schema`` has the columns as the task gives them."""

    def __init__(self, output: Output, schema: pa.Schema) -> None:
        self._output = output
        self.schema = as_stored(schema)
        self._suffixes = {field.name: suffix for field in schema if (suffix := suffix_of(field))}
        self._threads = ThreadPoolExecutor(READERS, "assets") if self._suffixes else None

    def stored(self, rows: pa.RecordBatch, shard: int, positions: Sequence[int]) -> pa.RecordBatch:
        """Write the assets of rows, which are at these positions of a shard; return the rows as stored."""
        for name, suffix in self._suffixes.items():
            assert self._threads is not None
            values = rows.column(name).to_pylist()
            folder = f"{FOLDER}/{name}/part-{shard:08}"
            stems = [f"{folder}/{position:08}" for position in positions]
            addresses = list(self._threads.map(self._put, stems, values, [suffix] * len(values)))
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, self.schema.field(name), pa.array(addresses, pa.string()))
        return rows

    def remove(self, old: pa.Table, new: pa.Table) -> None:
        """Remove the assets that a part named and the one that replaces it does not."""
        for address in sorted({*self._addresses(old)} - {*self._addresses(new)}):
            self._output.storage.delete(self._output.path(*address.split("/")))

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def _put(self, stem: str, data: bytes | None, suffix: str) -> str | None:
        """Write one asset unless it is there, and return its address; none of an image that failed."""
        if data is None:
            return None
        address = f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}.{suffix}"
        with suppress(AlreadyExists):
            self._output.storage.create(self._output.path(*address.split("/")), data)
        return address

    def _addresses(self, part: pa.Table) -> Iterator[str]:
        for name in self._suffixes:
            yield from (one for one in part[name].to_pylist() if one is not None)
