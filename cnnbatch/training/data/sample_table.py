"""The training images as a table: where each lies and its class, so that an epoch is drawn from numbers.

A worker holds the table and the keys' hashes, some hundred bytes an image; pixels come as they are needed.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output import integrity, plan
from cnnbatch.training.data import shuffle
from cnnbatch.types import ImageRef, Shard, Source

_CHUNK = 4096
LABEL = "class"
_COLUMNS = plan.PAGE_COLUMNS.append(pa.field(LABEL, pa.string()))


@dataclass(frozen=True)
class Refs:
    """Images in the order of their listing, as `plan.page_table` has them, and their ``class``."""

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def hashes(self) -> shuffle.Hashes:
        """A number for each key."""
        keys: list[Any] = self.table["key"].to_pylist()
        return shuffle.key_hashes(keys)

    @cached_property
    def runs(self) -> shuffle.Places | None:
        """The run of each image in its container; None for files of their own."""
        contained = self.table["row"].is_valid().to_numpy() | self.table["offset"].is_valid().to_numpy()
        if not contained.any():
            return None
        uris = np.asarray(self.table["uri"].combine_chunks().dictionary_encode().indices)
        starts = np.flatnonzero(np.diff(uris, prepend=-1))
        since = np.arange(len(uris)) - np.repeat(starts, np.diff(np.append(starts, len(uris))))
        begins = (since % shuffle.RUN == 0) | ~contained
        return np.cumsum(begins, dtype=np.int64)

    def shard(self, places: Sequence[int] | shuffle.Places, index: int = 0) -> Shard:
        """Return some images as a shard."""
        rows = self.table.take(pa.array(places, pa.int64()))
        return next(
            plan.page_shards(rows.set_column(0, "shard", pa.array([index] * len(places), pa.int32())))
        )

    def some(self, most: int) -> Refs:
        """Return at most so many of the images, by the hash of their keys, in the order of the listing."""
        chosen = np.sort(np.argsort(shuffle.mixed(self.hashes, most), kind="stable")[:most])
        return Refs(self.table.take(chosen))

    def without(self, classes: Collection[str]) -> Refs:
        """Return the images of all other classes."""
        kept = [label not in classes for label in self.table[LABEL].to_pylist()]
        return Refs(self.table.filter(pa.array(kept, pa.bool_())))

    def counts(self) -> Counter[str]:
        """Return how many images have each class; nothing where they have objects."""
        return Counter(label for label in self.table[LABEL].to_pylist() if label is not None)

    def to_bytes(self) -> bytes:
        """Return the table as a Parquet file."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Refs:
        """Read what `to_bytes` gave; raises ValueError for another table."""
        table = pq.read_table(pa.BufferReader(data))
        integrity.require_columns(table.schema, _COLUMNS)
        return cls(table)


@dataclass(frozen=True)
class Listed:
    """What listing a part found; ``objects`` counts the labels of objects, where images have those."""

    refs: Refs
    objects: Counter[str]
    unlabelled: int


def listed(source: Source, refs: Iterable[ImageRef]) -> Listed:
    """List the images of a part with their truth; those without any are left out and counted."""
    tables, objects, unlabelled = [], Counter[str](), 0
    for chunk in _chunks(refs):
        table = plan.page_table([Shard(0, chunk)], source.columns)
        truth: Any = source.truth(Shard(0, chunk))
        labels: list[str | None] = [None] * len(chunk)
        known = [False] * len(chunk)
        if truth is not None and "label" in truth.schema.names:
            labels = truth["label"].to_pylist()
            known = [label is not None for label in labels]
        elif truth is not None and "objects" in truth.schema.names:
            known = truth["objects"].is_valid().to_pylist()
            for row in truth["objects"].to_pylist():
                objects.update(one["label"] for one in row or () if _is_learned(one))
        unlabelled += known.count(False)
        tables.append(table.append_column(LABEL, pa.array(labels, pa.string())).filter(pa.array(known)))
    empty = plan.page_table([], source.columns).append_column(LABEL, pa.array([], pa.string()))
    return Listed(Refs(pa.concat_tables(tables or [empty])), objects, unlabelled)


def _is_learned(one: Mapping[str, Any]) -> bool:
    """Say whether an object teaches its class: crowds and what is to be ignored do not."""
    return one["label"] is not None and not one.get("crowd") and not one.get("ignore")


def _chunks(refs: Iterable[ImageRef]) -> Iterator[tuple[ImageRef, ...]]:
    stream = iter(refs)
    while chunk := tuple(islice(stream, _CHUNK)):
        yield chunk
