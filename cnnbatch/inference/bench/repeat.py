"""A few images for as long as they are asked for: each time under another key, since keys are unique."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import pyarrow as pa

from cnnbatch.types import Content, Failure, ImageRef, Shard, Source


@dataclass(frozen=True, slots=True)
class RepeatedSource:
    """A source whose images are some of another's, in rounds without end; keys are ``ROUND/KEY``."""

    source: Source
    images: Sequence[ImageRef]

    @property
    def columns(self) -> pa.Schema:
        """The other's."""
        return self.source.columns

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The other's."""
        return self.source.truth_schema

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images, round after round."""
        for turn in count():
            for ref in self.images:
                yield replace(ref, key=f"{turn}/{ref.key}")

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give one reader an image."""
        return self.source.read(_own(shard))

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the other's truth."""
        return self.source.truth(_own(shard))


def own_key(key: str) -> str:
    """Return the key that an image has in its own source."""
    return key.partition("/")[2]


def _own(shard: Shard) -> Shard:
    return replace(shard, refs=tuple(replace(ref, key=own_key(ref.key)) for ref in shard.refs))
