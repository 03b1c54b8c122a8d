"""Another source's images as if nothing were known of them: for a model that knows none of their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cnnbatch.types import Content, Failure, ImageRef, Shard, Source


@dataclass(frozen=True)
class WithoutTruth:
    """The images of ``source``, whose ground truth is left out."""

    source: Source
    truth_schema: None = None

    @property
    def columns(self) -> pa.Schema:
        """The columns of the source itself."""
        return self.source.columns

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the source's images."""
        return self.source.refs(after)

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give the source's readers."""
        return self.source.read(shard)

    def truth(self, shard: Shard) -> None:
        """Return nothing."""
