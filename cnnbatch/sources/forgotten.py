"""A source as an output reads it that has forgotten some of its images: these are never asked for.

The plan has what stands for them; see `cnnbatch.output.forgotten_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cnnbatch.output.forgotten_rows import FAILURE, Forgetting
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.types import Content, Failure, Shard, Source


@dataclass(frozen=True)
class WithoutForgotten(SourceWrapper):
    """The images of ``source``; those that ``forgetting`` suppresses have neither bytes nor ground truth."""

    forgetting: Forgetting

    def read(self, shard: Shard) -> Iterator[Callable[[], Content | Failure]]:
        """Give the source's readers, and one that fails for an image that is forgotten."""
        shard = self.forgetting.shard(shard)
        readers = self.source.read(_remaining(shard))
        for ref in shard.refs:
            yield _forgotten if ref.is_forgotten else next(readers)

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth; all null of an image that is forgotten."""
        shard = self.forgetting.shard(shard)
        remaining = _remaining(shard)
        truth = self.source.truth(remaining)
        if truth is None:
            return None
        truth = self.forgetting.truth(truth, [ref.key for ref in remaining.refs])
        known = np.array([not ref.is_forgotten for ref in shard.refs])
        places: Any = pa.array(np.cumsum(known) - 1, mask=~known)
        return truth.take(places)


def without_forgotten(source: Source, forgetting: Forgetting) -> Source:
    """Return ``source`` itself where nothing was forgotten."""
    return WithoutForgotten(source, forgetting) if forgetting.forgotten else source


def forgetting_of(source: Source) -> Forgetting:
    """Return what a source leaves out."""
    return source.forgetting if isinstance(source, WithoutForgotten) else Forgetting()


def _remaining(shard: Shard) -> Shard:
    refs = tuple(ref for ref in shard.refs if not ref.is_forgotten)
    return replace(shard, refs=refs, vanished=frozenset())


def _forgotten() -> Failure:
    return FAILURE
