"""Counts what a job's listing gives in the time that it is allowed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from cnnbatch.config.input import Input
from cnnbatch.output import plan
from cnnbatch.storage import Entry, Storage
from cnnbatch.types import ImageRef, Shard, Source, Span

SPREAD_OVER = 1000  # images, the first of the listing, among which the sample is chosen
SHARD = 1000
"""Images of which the ground truth is read at once."""


@dataclass
class ListingCount:
    """What the listing gave in the time that was allowed.

    ``objects`` are all that the storage listed, images or not; ``sized`` of the images it gave the size,
    together ``sized_bytes``; ``first`` are the first `SPREAD_OVER` images.
    """

    images: int = 0
    complete: bool = False
    seconds: float = 0.0
    objects: int = 0
    sized: int = 0
    sized_bytes: int = 0
    first: list[ImageRef] = field(default_factory=list)

    def add(self, ref: ImageRef, size: int | None) -> None:
        """Count one image."""
        self.images += 1
        if size is not None:
            self.sized += 1
            self.sized_bytes += size
        if self.images <= SPREAD_OVER:
            self.first.append(ref)


def refs_of(source: Source, chosen: Input) -> Iterator[ImageRef]:
    """Stream the images that a job would take."""
    return plan.select(source.refs(), chosen.sample, chosen.limit)


def shards_of(refs: Iterable[ImageRef]) -> Iterator[Shard]:
    """Yield images as shards, to read their ground truth."""
    return plan.cut(refs, lambda index: SHARD)


def count(source: Source, chosen: Input, storage: WatchedStorage, seconds: float) -> ListingCount:
    """Count the images that a job would take, as far as the listing comes in so many ``seconds``."""
    found, started, before = ListingCount(), time.monotonic(), storage.objects
    storage.ends = started + seconds
    try:
        for ref in refs_of(source, chosen):
            found.add(ref, storage.size_of(ref))
            storage.require_time()
        found.complete = True
    except _TimeIsUp:
        pass
    finally:
        storage.ends = math.inf
    return replace(found, seconds=time.monotonic() - started, objects=storage.objects - before)


class _TimeIsUp(Exception):
    """The listing has had its time."""


class WatchedStorage(Storage):
    """A storage that notes what it lists, and may do so for a time only."""

    ends = math.inf
    objects = 0
    _last: Entry | None = None

    def list(self, uri: str, after: str | None = None) -> Iterator[Entry]:
        """List as `Storage` does; raises where the time is up."""
        for entry in super().list(uri, after):
            self.require_time()
            self.objects += 1
            self._last = entry
            yield entry

    def head(self, uri: str) -> Entry:
        """Return what is known of a file, and note it."""
        self._last = super().head(uri)
        return self._last

    def open(self, uri: str) -> BinaryIO:
        """Open as `Storage` does; raises where the time is up."""
        self.require_time()
        return super().open(uri)

    def require_time(self) -> None:
        """Raise where the time is up."""
        if time.monotonic() > self.ends:
            raise _TimeIsUp

    def size_of(self, ref: ImageRef) -> int | None:
        """Return the size of the image that was listed last."""
        if ref.at is not None:
            return ref.at.length if isinstance(ref.at, Span) else None
        return self._last.size if self._last and self._last.uri == ref.uri else None
