"""Objects that rows point to: a field marked as an asset gives bytes, and a part has their addresses.

An address follows from the image's place in its part and from the bytes, so that the same shard, computed
again, writes nothing twice, and a part never points to what another attempt has made. Assets lie there before
the part that names them is put.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.output.folder import READERS, Output
from cnnbatch.storage import AlreadyExists

FOLDER = "assets"
_SUFFIX = b"asset"


def as_asset(field: pa.Field[Any], suffix: str) -> pa.Field[Any]:
    """Return a field of bytes marked as assets, which become files that end with ``suffix``.

    The field is a column, or one of the objects in a column of lists.
    """
    known: Any = field.metadata or {}
    return field.with_metadata({**known, _SUFFIX: suffix.encode()})


def as_stored(schema: pa.Schema) -> pa.Schema:
    """Return the columns as a part has them: addresses below the output in the place of assets."""
    return pa.schema([_as_stored(field) for field in schema], schema.metadata)  # type: ignore[arg-type]


def suffix_of(field: pa.Field[Any]) -> str:
    """Return what the files of a field of assets end with; nothing where it is none."""
    return (field.metadata or {}).get(_SUFFIX, b"").decode()


def has_assets(schema: pa.Schema) -> bool:
    """Say whether the columns of a part, as it is stored, have addresses of assets."""
    return any(True for _ in _places(schema))


def assets_without_row(output: Output, shard: int, part: pa.Table) -> list[str]:
    """Return the addresses of the assets of a shard that no row of its ``part`` names."""
    places = [*_places(part.schema)]
    named = set(_addresses(part, places))
    folders = [f"{FOLDER}/{place.name}/part-{shard:08}" for place in places]
    there = {f"{folder}/{name}" for folder in folders for name in output.names(folder)}
    return sorted(there - named)


class AssetSink:
    """Writes the assets of an output's rows; ``schema`` has the columns as the task gives them."""

    def __init__(self, output: Output, schema: pa.Schema) -> None:
        self._output = output
        self.schema = as_stored(schema)
        self._places = [*_places(schema)]
        self._threads = ThreadPoolExecutor(READERS, "assets") if self._places else None

    def stored(self, rows: pa.RecordBatch, shard: int, positions: Sequence[int]) -> pa.RecordBatch:
        """Write the assets of rows, which are at these positions of a shard; return the rows as stored."""
        for place in self._places:
            folder = f"{FOLDER}/{place.name}/part-{shard:08}"
            column: Any = rows.column(place.column)
            stems = place.stems(column, [f"{folder}/{position:08}" for position in positions])
            assert self._threads is not None
            put = partial(self._put, suffix=place.suffix)
            addresses = pa.array(
                [*self._threads.map(put, stems, place.values(column).to_pylist())], pa.string()
            )
            number = rows.schema.get_field_index(place.column)
            field = self.schema.field(place.column)
            rows = rows.set_column(number, field, place.replaced(column, field, addresses))
        return rows

    def remove(self, old: pa.Table, new: pa.Table) -> None:
        """Remove the assets that a part named and the one that replaces it does not."""
        for address in sorted({*_addresses(old, self._places)} - {*_addresses(new, self._places)}):
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where assets are: in a column, or in a ``field`` of the objects in a column of lists."""

    column: str
    suffix: str
    field: str | None = None

    @property
    def name(self) -> str:
        """What the folder of the files is called."""
        return self.field or self.column

    def values(self, column: Any) -> Any:
        """Return the assets, or their addresses, one after the other."""
        return column if self.field is None else pc.struct_field(column.flatten(), self.field)

    def stems(self, column: Any, stems: Sequence[str]) -> list[str]:
        """Return how the names of the files begin; of objects by their places in the lists, too."""
        if self.field is None:
            return [*stems]
        counts = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
        return [
            f"{stem}.{place}" for stem, count in zip(stems, counts, strict=True) for place in range(count)
        ]

    def replaced(self, column: Any, field: pa.Field[Any], addresses: Any) -> Any:
        """Return the column with ``addresses`` in the place of its assets, of the type of ``field``."""
        if self.field is None:
            return addresses
        objects = column.flatten()
        inner = _objects(field)
        arrays = [
            addresses if one.name == self.field else pc.struct_field(objects, one.name) for one in inner
        ]
        structs = pa.StructArray.from_arrays(arrays, fields=inner)
        counts = pc.fill_null(pc.list_value_length(column), 0)
        ends: Any = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(counts).cast(pa.int32())])
        return pa.ListArray.from_arrays(ends, structs, type=field.type, mask=column.is_null())


def _addresses(part: pa.Table, places: Iterable[_Place]) -> Iterator[str]:
    """Yield the addresses of assets that the rows of a part name."""
    for place in places:
        values = place.values(part[place.column].combine_chunks()).to_pylist()
        yield from (one for one in values if one is not None)


def _places(schema: pa.Schema) -> Iterator[_Place]:
    for field in schema:
        if suffix := suffix_of(field):
            yield _Place(field.name, suffix)
        yield from (
            _Place(field.name, suffix, one.name) for one in _objects(field) if (suffix := suffix_of(one))
        )


def _objects(field: pa.Field[Any]) -> list[pa.Field[Any]]:
    """Return the fields of the objects in a column of lists; none where it has no objects."""
    kind: Any = field.type
    return [*kind.value_type] if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) else []


def _as_stored(field: pa.Field[Any]) -> pa.Field[Any]:
    if suffix_of(field):
        return field.with_type(pa.string())
    inner = _objects(field)
    if not any(map(suffix_of, inner)):
        return field
    return field.with_type(pa.list_(pa.struct([_as_stored(one) for one in inner])))
