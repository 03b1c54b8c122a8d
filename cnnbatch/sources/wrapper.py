"""A source that hands everything on to another one: what changes a part of a source begins here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

    @property
    def reads_masks(self) -> bool:
        """Whether the truth's masks are files of their own, which may be damaged or of another size."""
        return getattr(self.source, "reads_masks", False)

    @property
    def has_masks(self) -> bool:
        """Whether the truth's masks lie in the source's own file, which may be made for other sizes."""
        return getattr(self.source, "has_masks", False)

    @property
    def label_names(self) -> Mapping[str, str | None]:
        """What the labels are called that lie in the refs, where they have other names than there."""
        found: Mapping[str, str | None] = getattr(self.source, "label_names", {})
        return found

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the source's images."""
        return self.source.refs(after)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give the source's readers."""
        return self.source.read(shard)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth."""
        return self.source.truth(shard)
