"""Brings a worker's images of an epoch, step by step, through the reader and decoder of prediction."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import torch

from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.readahead import DecodeOptions, Item, ReadAhead, ReadRequest
from cnnbatch.tasks.recipes.recipe import Example, Recipe
from cnnbatch.training.data import shuffle
from cnnbatch.training.data.decoded_cache import Pictures
from cnnbatch.training.data.sample_table import Refs
from cnnbatch.types import Failure, Image, Prepared, Source

SHARD_STEPS = 64
"""Steps whose images are read as one shard: at its end the readers run dry once."""
_EXAMPLES = 8
CONTAINED = 1024
"""Images of containers that are read at once, whose bytes are held together."""


@dataclass(slots=True)
class FailedImages:
    """Images that could not be learned from, each once, by its key."""

    by_key: dict[str, Failure] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        """Return how many there are by code."""
        return Counter(failure.code for failure in self.by_key.values())

    def examples(self) -> list[str]:
        """Return a few of their messages."""
        return [f"{key}: {failure.message}" for key, failure in islice(self.by_key.items(), _EXAMPLES)]


class Loader:
    """The images of one part, for one of ``world`` workers.

    ``kept_bytes`` may hold decoded pictures.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        refs: Refs,
        seed: int,
        kept_bytes: int,
        decoding: DecodeOptions,
    ) -> None:
        self.refs = refs
        self.failed = FailedImages()
        self._seed = seed
        self._per_class: int | None = getattr(recipe, "pictures_per_class", None)
        self._pictures = Pictures(source, kept_bytes)
        self._inputs = _Inputs(recipe, self._pictures, seed)
        handle, name = tempfile.mkstemp(prefix="cnnbatch-train-")
        os.close(handle)
        self._journal = Path(name)
        journal = Journal(self._journal)
        self._ahead = ReadAhead(self._pictures, self._inputs, journal, decoding)

    def close(self) -> None:
        """End its threads."""
        self._ahead.close()
        self._journal.unlink(missing_ok=True)

    def training(
        self, epoch: int, batch: int, rank: int = 0, world: int = 1, first: int = 0
    ) -> Iterator[list[Example]]:
        """Yield a worker's examples of each step of an epoch, beginning with step ``first``."""
        yield from self._steps(shuffle.dealt(self.steps(epoch, batch)[first:], rank, world), epoch)

    def count_steps(self, batch: int) -> int:
        """Return the number of steps of an epoch."""
        if self._per_class is None:
            return shuffle.count_steps(len(self.refs), batch)
        return len(self.steps(0, batch))

    def steps(self, epoch: int, batch: int) -> list[shuffle.Places]:
        """Return the images of each step of an epoch, as places in `refs`."""
        hashes = self.refs.hashes
        if self._per_class is not None:
            return shuffle.balanced(hashes, self.refs.classes, self._seed, epoch, batch, self._per_class)
        return shuffle.cut(shuffle.order(hashes, self._seed, epoch, self.refs.runs), batch)

    def validating(self, batch: int, rank: int = 0, world: int = 1) -> Iterator[list[Example]]:
        """Yield a worker's examples as prediction has them, in the order of their listing."""
        places = shuffle.share(torch.arange(len(self.refs)).numpy(), rank, world)
        steps = [places[start : start + batch] for start in range(0, len(places), batch)]
        yield from self._steps(steps, None)

    def at(self, places: shuffle.Places) -> list[Example]:
        """Return the examples of some images as prediction has them, but of those that can't be read."""
        return [example for some in self._steps([places], None) for example in some]

    def _steps(self, steps: Sequence[shuffle.Places], epoch: int | None) -> Iterator[list[Example]]:
        self._inputs.epoch = epoch
        largest = max((len(one) for one in steps), default=1)
        together = max(1, CONTAINED // max(1, largest)) if self.refs.runs is not None else SHARD_STEPS
        for start in range(0, len(steps), together):
            yield from self._shard(steps[start : start + together])

    def _shard(self, steps: Sequence[shuffle.Places]) -> Iterator[list[Example]]:
        places = [int(place) for one in steps for place in one]
        if not places:
            yield from ([] for _ in steps)
            return
        shard = self.refs.shard(places)
        truth = self._pictures.truth_rows(shard)
        with self._ahead.windows(ReadRequest(shard, range(len(places)), {}, truth)) as windows:
            items = _flat(windows)
            for one in steps:
                yield list(self._good([next(items) for _ in range(len(one))]))

    def _good(self, items: Sequence[Item]) -> Iterator[Example]:
        for item in items:
            if item.outcome.failure is not None:
                self.failed.by_key.setdefault(item.outcome.ref.key, item.outcome.failure)
            for prepared in item.prepared:
                assert isinstance(prepared, Example)
                yield prepared


def _flat(windows: Iterator[list[Item]]) -> Iterator[Item]:
    for window in windows:
        yield from window


class _Inputs:
    """A recipe as what the reader prepares inputs by; where ``epoch`` is None, nothing is by chance."""

    def __init__(self, recipe: Recipe, pictures: Pictures, seed: int) -> None:
        self._recipe, self._pictures, self._seed = recipe, pictures, seed
        self.epoch: int | None = None

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the size that the recipe asks for."""
        return self._recipe.decode_size(size)

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Return the image as the recipe's example."""
        self._pictures.keep(image.ref.key, image.pixels, image.size)
        draw = None if self.epoch is None else Random(f"{self._seed} {self.epoch} {image.ref.key}")
        return [self._recipe.example(image, draw)]
