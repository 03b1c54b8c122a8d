"""Whether one strategy is as good as another, by the same test images: the paired bootstrap.

An image counts by how many of the runs were right on it. Its weight in a replicate follows from its key, so
both strategies see the same resampled images, and what they have in common cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.metrics.intervals import hash_weights, key_hashes, percentiles
from cnnbatch.output.folder import Output
from cnnbatch.storage import NotFound

REPLICATES = 1000
POINT = 0.01
"""A difference that is of no account."""


@dataclass(frozen=True, slots=True)
class RunOutcomes:
    """The test images of some runs, by key: their classes, and the share of the runs that were right."""

    keys: Sequence[str]
    classes: NDArray[np.int64]
    right: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much better the first is than the second on the test, with its paired 95 % interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_as_good(self) -> bool:
        """Say whether the first is at most a point worse, or no worse than chance may make it look."""
        return self.value >= -POINT or (self.high is not None and self.high >= 0)


def read_outcomes(outputs: Sequence[Output]) -> RunOutcomes | None:
    """Return the judged test images of several runs that have the same; None where they have not."""
    tables = [table for output in outputs if (table := _judged(output)) is not None]
    if not tables or len(tables) < len(outputs):
        return None
    keys = tables[0]["key"].to_pylist()
    if any(table["key"].to_pylist() != keys for table in tables):
        return None
    labels = np.asarray(tables[0]["label"].combine_chunks().dictionary_encode().indices, np.int64)
    right = np.mean([np.nan_to_num(table["right"].cast(pa.float64()).to_numpy()) for table in tables], axis=0)
    return RunOutcomes([str(key) for key in keys], labels, right)


def difference(
    one: RunOutcomes, other: RunOutcomes, macro: bool, replicates: int = REPLICATES
) -> PairedDifference | None:
    """Return how much better ``one`` is: in accuracy, or ``macro`` in its mean over the classes.

    None where they were not tested by the same images.
    """
    if list(one.keys) != list(other.keys):
        return None
    gains = one.right - other.right
    groups = one.classes if macro else np.zeros(len(gains), np.int64)
    each = hash_weights(key_hashes(one.keys), range(replicates))
    value = float(_means(gains, groups, np.ones((len(gains), 1), np.uint8))[0])
    return PairedDifference(value, *percentiles(_means(gains, groups, each)))


def _means(
    gains: NDArray[np.float64], groups: NDArray[np.int64], weights: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the mean over groups of weighted means, (R,); a group that a replicate lacks is left out."""
    sums = []
    for group in np.unique(groups):
        there = groups == group
        totals = weights[there].sum(0, dtype=np.int64)
        weighted = gains[there] @ weights[there].astype(np.float64)
        sums.append(np.divide(weighted, totals, out=np.full(len(totals), np.nan), where=totals > 0))
    stacked = np.array(sums)
    known = ~np.isnan(stacked)
    found: NDArray[np.float64] = np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1)
    return found


def _judged(output: Output) -> pa.Table | None:
    try:
        with output.storage.open(output.path("evaluation", "images.parquet")) as file:
            return pq.read_table(file, columns=["key", "label", "right"]).sort_by("key")
    except NotFound:
        return None
