"""The objects that an earlier output found, to be images of another job: detect first, then classify."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from cnnbatch import integrity
from cnnbatch.changes import Changes
from cnnbatch.errors import UserError
from cnnbatch.output import Listing, Output
from cnnbatch.records import ImageRef, Shard
from cnnbatch.sources import Source
from cnnbatch.sources.regions import Region, regions_of
from cnnbatch.storage import Allowed, NotFound, OutOfReach, Storage, normalize, redact

if TYPE_CHECKING:
    from cnnbatch.job import Input


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
        """Stream the images in the order of the plan; those that failed have no objects."""
        listings = self.output.listings()
        changes = Changes([one for one in listings if one.complete() is not None])
        for listing in listings:
            for shard in _shards(listing):
                yield from self._of_shard(changes.apply(shard))

    def _of_shard(self, shard: Shard) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        try:
            uri = self.output.part(shard.index)
            with self.output.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
                rows = pq.read_table(file, columns=["objects"])["objects"].to_pylist()
        except NotFound:
            raise UserError(
                f"{redact(self.output.uri)}: part {shard.index} is not finished yet\n"
                "  what to do: give the command that makes it again, and let it end"
            ) from None
        for ref, objects in zip(shard.refs, rows, strict=True):
            yield ref, [region for region in regions_of(objects) if self._is_sure(region)]

    def _is_sure(self, region: Region) -> bool:
        """Compare in 32 bits, as which the scores were written."""
        return region.score is None or bool(np.float32(region.score) >= np.float32(self.min_score))


def is_output(url: str, storage: Storage) -> bool:
    """Say whether an address is the output of a job."""
    return storage.exists(Output(normalize(url), storage).path("_job", "job.yaml"))


def open_earlier(url: str, storage: Storage, min_score: float, allow: Sequence[Allowed] = ()) -> FoundBoxes:
    """Return the objects of an output; `UserError` where its task writes none.

    The output names its images as a list does: one in a bucket may be anybody's, so it reaches no further.
    """
    from cnnbatch.result import Result
    from cnnbatch.sources.formats import open_format

    result = Result(url, storage)
    input = _input(result.settings)
    if "objects" not in result.schema.names or "objects" in input.keep:
        raise UserError(
            f"{redact(url)} has no objects: its columns are {', '.join(result.schema.names)}\n"
            "  what to do: give the output of a task that finds some, such as detect"
        )
    input = input.model_copy(update={"allow": tuple(allow)})
    images = Storage(input.storage).for_list(normalize(url), allow)
    try:
        return FoundBoxes(Output(normalize(url), storage), open_format(input, images), min_score)
    except OutOfReach as error:
        raise UserError(f"{redact(url)} cannot be read further: {error}") from None


def _input(settings: dict[str, Any]) -> Input:
    from cnnbatch.job import Input

    return Input.model_validate(json.loads(json.dumps(settings["input"])))


def _shards(listing: Listing) -> Iterator[Shard]:
    for page in range(listing.count_pages()):
        yield from listing.read(page)
