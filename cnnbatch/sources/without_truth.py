"""Another source's images as if nothing were known of them: for a model that knows none of their classes."""

from __future__ import annotations

from dataclasses import dataclass

from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.types import Shard


@dataclass(frozen=True)
class WithoutTruth(SourceWrapper):
    """The images of ``source``, whose ground truth is left out."""

    truth_schema: None = None

    def truth(self, shard: Shard) -> None:
        """Return nothing."""
