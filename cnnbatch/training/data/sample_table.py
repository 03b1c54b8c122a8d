"""The training images as a table: where each lies and its class, so that an epoch is drawn from numbers.

A worker holds the table and the keys' hashes, some hundred bytes an image; pixels come as they are needed.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output import integrity, plan
from cnnbatch.training.data import shuffle
from cnnbatch.training.data.ground_truth import truth_kind
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
class ListedPart:
    """What listing a part found; ``objects`` counts the labels of objects, where images have those."""

    refs: Refs
    objects: Counter[str]
    unlabelled: int

    def counts(self) -> Counter[str]:
        """Count the images' labels, or those of their objects."""
        return self.refs.counts() or self.objects


def listed(source: Source, refs: Iterable[ImageRef]) -> ListedPart:
    """List the images of a part with their truth; those without any are left out and counted."""
    tables, objects, unlabelled = [], Counter[str](), 0
    for chunk in _chunks(refs):
        table = plan.page_table([Shard(0, chunk)], source.columns)
        truth: Any = source.truth(Shard(0, chunk))
        labels: list[str | None] = [None] * len(chunk)
        known = [False] * len(chunk)
        if truth is not None:
            answer, kind = truth_kind(truth.schema)
            labels, known = kind.labels(truth[answer]), kind.known(truth[answer])
            objects.update(kind.objects(truth[answer]))
        unlabelled += known.count(False)
        tables.append(table.append_column(LABEL, pa.array(labels, pa.string())).filter(pa.array(known)))
    empty = plan.page_table([], source.columns).append_column(LABEL, pa.array([], pa.string()))
    return ListedPart(Refs(pa.concat_tables(tables or [empty])), objects, unlabelled)


def _chunks(refs: Iterable[ImageRef]) -> Iterator[tuple[ImageRef, ...]]:
    stream = iter(refs)
    while chunk := tuple(islice(stream, _CHUNK)):
        yield chunk
