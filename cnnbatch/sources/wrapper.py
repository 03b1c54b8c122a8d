"""A source that hands everything on to another one: what changes a part of a source begins here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cnnbatch.types import Content, Failure, ImageRef, Shard, Source


@dataclass(frozen=True)
class SourceWrapper:
    """The images of ``source`` as they are; a subclass overrides what differs."""

    source: Source

    @property
    def columns(self) -> pa.Schema:
        """The columns of the source itself."""
        return self.source.columns

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The truth's columns of the source itself."""
        return self.source.truth_schema

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the source's images."""
        return self.source.refs(after)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give the source's readers."""
        return self.source.read(shard)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth."""
        return self.source.truth(shard)
