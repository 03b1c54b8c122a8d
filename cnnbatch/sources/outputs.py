"""The objects that an earlier output found, to be images of another job: detect first, then classify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import require_whole
from cnnbatch.output.plan_pages import Changes, Listing, listings_of
from cnnbatch.sources.regions import ANSWER, Region, regions_of
from cnnbatch.storage import NotFound, Storage, normalize, redact
from cnnbatch.types import ImageRef, Shard, Source


@dataclass(frozen=True)
class FoundBoxes:
    """The images of a finished output, read as its own job read them, with the objects that it found.

    Only those are taken whose score is at least ``min_score``, and those without a score. What the model
    called them is no ground truth, so there are no classes.
    """

    output: Output
    source: Source
    min_score: float
    classes: None = None

    def pairs(self) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        """Stream the images in the order of the plan but for forgotten ones; who failed has no objects."""
        require_whole(self.output)
        listings = listings_of(self.output)
        changes = Changes([one for one in listings if one.complete() is not None])
        for listing in listings:
            for shard in _shards(listing):
                yield from self._of_shard(changes.apply(shard))

    def _of_shard(self, shard: Shard) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        try:
            uri = self.output.part(shard.index)
            with self.output.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
                rows = pq.read_table(file, columns=[ANSWER])[ANSWER].to_pylist()
        except NotFound:
            raise UserError(
                f"{redact(self.output.uri)}: part {shard.index} is not finished yet\n"
                "  what to do: give the command that makes it again, and let it end"
            ) from None
        for ref, objects in zip(shard.refs, rows, strict=True):
            if not ref.is_forgotten:
                yield ref, [region for region in regions_of(objects) if self._is_sure(region)]

    def _is_sure(self, region: Region) -> bool:
        """Compare in 32 bits, as which the scores were written."""
        return region.score is None or bool(np.float32(region.score) >= np.float32(self.min_score))


def is_output(url: str, storage: Storage) -> bool:
    """Say whether an address is the output of a job."""
    return storage.exists(Output(normalize(url), storage).path("_job", "job.yaml"))


def _shards(listing: Listing) -> Iterator[Shard]:
    for page in range(listing.count_pages()):
        yield from listing.read(page)
