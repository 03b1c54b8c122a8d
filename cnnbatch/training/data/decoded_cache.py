"""Decoded pictures, and truth from files of masks, kept from one epoch to the next as far as memory goes.

What fits is read and decoded once; the rest every time. A picture is kept at the size that the recipe
decodes it at, before anything is changed at random.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from cnnbatch.training.data.ground_truth import truth_kind
from cnnbatch.types import Content, Failure, ImageRef, Shard, Source

Size = tuple[int, int]

MASKS = 8
"""Which part of the memory is for masks, of which a file has far fewer bytes than its picture's pixels."""
_VALUE_BYTES = 64  # of Python for a value beside its text


@dataclass(frozen=True, slots=True)
class Kept:
    """A picture that was decoded before."""

    pixels: Tensor
    size: Size

    @property
    def size_bytes(self) -> int:
        """Nothing was read for it."""
        return 0

    def decode(self, least: Callable[[Size], Size | None]) -> tuple[Tensor, Size]:
        """Return the pixels as they were decoded."""
        return self.pixels, self.size


class Pictures:
    """A source whose pictures and masks are kept once they were read, up to ``limit_bytes`` of memory."""

    def __init__(self, source: Source, limit_bytes: int) -> None:
        self._source = source
        schema = source.truth_schema
        of_files = schema is not None and truth_kind(schema)[1].files
        self._keeps_truth = of_files or getattr(source, "reads_masks", False)
        self._left_for_truth = limit_bytes // MASKS if self._keeps_truth else 0
        self._left = limit_bytes - self._left_for_truth
        self._kept: dict[str, Kept] = {}
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    @property
    def columns(self) -> pa.Schema:
        """The columns of the source itself."""
        return self._source.columns

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The truth of the source itself."""
        return self._source.truth_schema

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the source's images."""
        return self._source.refs(after)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth."""
        return self._source.truth(shard)

    def truth_rows(self, shard: Shard) -> list[Mapping[str, Any]] | None:
        """Return the truth of a shard, a row an image; masks are read once, as far as there is room."""
        missing = [ref for ref in shard.refs if ref.key not in self._rows]
        table = self.truth(Shard(shard.index, tuple(missing))) if missing else None
        if table is None and missing:
            return None
        rows = dict(zip((ref.key for ref in missing), table.to_pylist() if table else (), strict=True))
        found = [rows.get(ref.key) or self._rows[ref.key] for ref in shard.refs]
        for key, row in rows.items() if self._keeps_truth else ():
            self._keep_row(key, row)
        return found

    def _keep_row(self, key: str, row: Mapping[str, Any]) -> None:
        size_bytes = _value_bytes(row)
        with self._lock:
            if size_bytes <= self._left_for_truth:
                self._left_for_truth -= size_bytes
                self._rows[key] = row

    def keep(self, key: str, pixels: Tensor, size: Size) -> None:
        """Keep a picture, if there is room."""
        with self._lock:
            if key in self._kept or pixels.nbytes > self._left:
                return
            self._left -= pixels.nbytes
            self._kept[key] = Kept(pixels, size)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image; those of containers are read in the order in which they lie."""
        wanted = [ref for ref in shard.refs if ref.key not in self._kept]
        if any(ref.at is not None for ref in wanted):
            return self._from_containers(shard, wanted)
        return self._from_files(shard, wanted)

    def _from_files(self, shard: Shard, wanted: list[ImageRef]) -> Iterator[Callable[[], Content | Failure]]:
        others = self._source.read(Shard(shard.index, tuple(wanted)))
        missing = {ref.key for ref in wanted}
        for ref in shard.refs:
            yield next(others) if ref.key in missing else _given(self._kept[ref.key])

    def _from_containers(
        self, shard: Shard, wanted: list[ImageRef]
    ) -> Iterator[Callable[[], Content | Failure]]:
        lying = sorted(wanted, key=_place)
        readers = self._source.read(Shard(shard.index, tuple(lying)))
        found = {ref.key: reader() for ref, reader in zip(lying, readers, strict=True)}
        for ref in shard.refs:
            yield _given(found.pop(ref.key) if ref.key in found else self._kept[ref.key])


def _value_bytes(value: Any) -> int:
    """Return about what a value of a row takes of memory."""
    if isinstance(value, Mapping):
        return sum(map(_value_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(_value_bytes, value))
    return _VALUE_BYTES + (len(value) if isinstance(value, bytes | str) else 0)


def _given(content: Content | Failure) -> Callable[[], Content | Failure]:
    return lambda: content


def _place(ref: ImageRef) -> tuple[str, int]:
    """Return where an image of a container lies: its file, and its row or offset there."""
    at = ref.at
    return ref.uri, 0 if at is None else getattr(at, "index", getattr(at, "offset", 0))
