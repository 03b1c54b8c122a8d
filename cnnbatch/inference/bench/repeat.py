"""A few images for as long as they are asked for: each time under another key, since keys are unique."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import pyarrow as pa

from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.types import Content, Failure, ImageRef, Shard


@dataclass(frozen=True)
class RepeatedSource(SourceWrapper):
    """A source whose images are some of another's, in rounds without end; keys are ``ROUND/KEY``."""

    images: Sequence[ImageRef]

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
