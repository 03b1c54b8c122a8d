"""The training images as a table: where each lies and its class, so that an epoch is drawn from numbers.

A worker holds the table and the keys' hashes, some hundred bytes an image; pixels come as they are needed.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.output import integrity, plan
from cnnbatch.sources.soundness import Checks, Problem
from cnnbatch.training.data import shuffle
from cnnbatch.training.data.ground_truth import TrainingTruth, truth_kind
from cnnbatch.truth import answer_of
from cnnbatch.types import ImageRef, Shard, Source

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
    def classes(self) -> shuffle.Places:
        """A number for the class of each image."""
        numbers: Any = self.table[LABEL].combine_chunks().dictionary_encode().indices
        return np.asarray(numbers.fill_null(-1), np.int64)

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

    def some_of_classes(self, most: int, each: int) -> Refs:
        """Return at most so many of the images, ``each`` of a class together as long as possible."""
        return Refs(self.table.take(self.of_classes(most, each)))

    def of_classes(self, most: int, each: int) -> shuffle.Places:
        """Return the places of such images, in their order; see `shuffle.of_classes`."""
        return shuffle.of_classes(self.hashes, self.classes, most, each)

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
    """What listing a part found.

    ``objects`` counts the labels of objects, where images have those; of maps ``pixels`` those of each class,
    and ``seen`` the images that have some. ``problems`` are images whose ground truth can't be used.
    """

    refs: Refs
    objects: Counter[str]
    unlabelled: int
    pixels: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    problems: Sequence[Problem] = ()

    def counts(self) -> Counter[str]:
        """Count the images' labels, those of their objects, or the images that have a pixel of a class."""
        return self.refs.counts() or self.objects or self.seen


def listed(source: Source, refs: Iterable[ImageRef]) -> ListedPart:
    """List the images of a part with their truth; those without any are left out and counted."""
    schema = source.truth_schema
    kind = TrainingTruth() if schema is None else truth_kind(schema)[1]
    tables, unlabelled, problems, checks = [], 0, list[Problem](), Checks(source)
    is_checked = kind.checked or getattr(source, "reads_masks", False)
    objects, pixels, seen = Counter[str](), Counter[str](), Counter[str]()
    for chunk in _chunks(refs, kind.at_once):
        shard = Shard(0, chunk)
        table, truth = plan.page_table([shard], source.columns), source.truth(shard)
        labels: list[str | None] = [None] * len(chunk)
        known = [False] * len(chunk)
        if truth is not None:
            values: Any = truth[answer_of(truth.schema)]
            labels, known = kind.labels(values), kind.known(values)
            objects.update(kind.objects(values))
            for counted, found in zip((pixels, seen), kind.pixels(truth), strict=True):
                counted.update(found)
            problems += checks.problems(shard, truth) if is_checked else []
        unlabelled += known.count(False)
        tables.append(table.append_column(LABEL, pa.array(labels, pa.string())).filter(pa.array(known)))
    empty = plan.page_table([], source.columns).append_column(LABEL, pa.array([], pa.string()))
    refs_found = Refs(pa.concat_tables(tables or [empty]))
    return ListedPart(refs_found, objects, unlabelled, pixels, seen, problems)


def _chunks(refs: Iterable[ImageRef], most: int) -> Iterator[tuple[ImageRef, ...]]:
    stream = iter(refs)
    while chunk := tuple(islice(stream, most)):
        yield chunk
