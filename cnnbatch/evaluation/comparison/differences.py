"""How much better B is than A by their truth: paired differences of all metrics, and the images behind them.

Both are judged over the same images, so what an image adds to one is compared with what it adds to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.agreement import Largest
from cnnbatch.evaluation.comparison.measure import ImageScore, Measure, floats
from cnnbatch.evaluation.comparison.pairing import Joined
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import percentiles, wilson
from cnnbatch.output.evaluation import Evaluation

NAMED = 20
"""Images that are named among those that got better, and as many that got worse."""

_LACKING = "only one of the outputs has it"
_ROUNDING = 1e-9  # An image's AP is a little other among other images.


class MetricDifference(NamedTuple):
    """One metric of A and of B: ``value`` is B - A, ``low`` to ``high`` its 95 % interval; None: unknown."""

    a: Value
    b: Value
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ImageChanges:
    """Which images got better or worse in B, by their ``score``.

    ``most_better`` and ``most_worse`` have a row an image: ``key``, and what `ImageScore.listed` gives.
    ``other_truths`` are the images whose truths differ.
    """

    score: ImageScore
    better: int
    worse: int
    same: int
    other_truths: int
    most_better: pa.Table
    most_worse: pa.Table

    @property
    def by(self) -> str:
        """The column of ``evaluation/images.parquet`` that they got better or worse by."""
        return self.score.column


class PairedOutcomes(NamedTuple):
    """Of how many images both say yes, only A, only B, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    def plus(self, other: PairedOutcomes) -> PairedOutcomes:
        """Return both together."""
        return PairedOutcomes(*(one + more for one, more in zip(self, other, strict=True)))


NO_IMAGES = PairedOutcomes(0, 0, 0, 0)


def differences(
    a: Evaluation, b: Evaluation, outcomes: Mapping[str, PairedOutcomes]
) -> dict[str, MetricDifference]:
    """Return the difference of every metric; one that only one of them has is no number in the other.

    The interval comes of the paired replicates; where there are none, of what the images say: ``outcomes``
    by metric.
    """
    found = {}
    for name in dict.fromkeys([*a.metrics, *b.metrics]):
        one, other = (side.metrics.get(name, Value(None, reason=_LACKING)) for side in (a, b))
        found[name] = difference(one, other, outcomes.get(name))
    return found


def difference(a: Value, b: Value, outcomes: PairedOutcomes | None = None) -> MetricDifference:
    """Return the difference of one metric, judged over the same images."""
    if a.value is None or b.value is None:
        return MetricDifference(a, b, None)
    observed = b.value - a.value
    if a.replicates is not None and b.replicates is not None:
        return MetricDifference(a, b, observed, *paired(observed, a.replicates, b.replicates))
    return MetricDifference(a, b, observed, *(newcombe(outcomes) if outcomes else (None, None)))


def paired(
    observed: float, a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of a difference from the replicates of both, (R,); an image has one weight.

    The percentiles of the replicates' differences are shifted by the bootstrap's estimate of its bias, their
    mean less what was observed (Efron, Tibshirani: An introduction to the bootstrap, 1993, chapter 10). Of
    different numbers of replicates the first ones are paired.
    """
    count = min(len(a), len(b))
    found = b[:count] - a[:count]
    low, high = percentiles(found)
    if low is None or high is None:
        return None, None
    bias = float(np.nanmean(found)) - observed
    # A few replicates far away can draw their mean out of the percentiles, and what was observed with it.
    return min(observed, low - bias), max(observed, high - bias)


def newcombe(outcomes: PairedOutcomes) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of B's share less A's, of the same images.

    Newcombe: Improved confidence intervals for the difference between binomial proportions based on paired
    data (1998), method 10: Wilson's intervals, put together by the correlation with its correction for
    continuity. It is not empty where no image changed.
    """
    both, only_a, only_b, neither = outcomes
    count, yes_a, yes_b = sum(outcomes), both + only_a, both + only_b
    (low_a, high_a), (low_b, high_b) = wilson(yes_a, count), wilson(yes_b, count)
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return None, None
    share_a, share_b = yes_a / count, yes_b / count
    below_a, above_a, below_b, above_b = share_a - low_a, high_a - share_a, share_b - low_b, high_b - share_b
    product = yes_a * (count - yes_a) * yes_b * (count - yes_b)
    covariance = both * neither - only_a * only_b
    corrected = max(covariance - count / 2, 0) if covariance > 0 else covariance
    correlation = corrected / sqrt(product) if product else 0.0

    def half(first: float, second: float) -> float:
        return sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0))

    observed = share_b - share_a
    return observed - half(below_b, above_a), observed + half(above_b, below_a)


class JudgedImages:
    """What images are better or worse by, taken in some at a time; ``outcomes`` are by metric.

    ``shares`` names by metric the yes or no of each image that it is the share of.
    """

    def __init__(self, score: ImageScore, shares: Mapping[str, str]) -> None:
        self.outcomes: dict[str, PairedOutcomes] = {}
        self._score, self._shares = score, shares
        self._counts = np.zeros(4, np.int64)  # better, worse, alike, and those with another truth
        self._better, self._worse = Largest(NAMED), Largest(NAMED)

    def columns(self) -> list[str]:
        """Return the columns of ``images.parquet`` that are read, each once."""
        truth = [] if self._score.truth is None else [self._score.truth]
        names = ["key", self._score.column, *truth, *self._score.more, *self._shares.values()]
        return list(dict.fromkeys(names))

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch) -> None:
        """Take images in, row beside row."""
        for metric, name in self._shares.items():
            found = _yes_and_no(a[name], b[name])
            self.outcomes[metric] = self.outcomes.get(metric, NO_IMAGES).plus(found)
        was, now = floats(a[self._score.column]), floats(b[self._score.column])
        gain = was - now if self._score.less_is_better else now - was
        better, worse, alike = gain > _ROUNDING, gain < -_ROUNDING, abs(gain) <= _ROUNDING
        self._counts += better.sum(), worse.sum(), alike.sum(), self._other_truths(a, b)
        rows = pa.table({"key": a["key"], **self._score.listed(a, b, was, now)})
        self._better.add(rows.filter(pa.array(better)))
        self._worse.add(rows.filter(pa.array(worse)))

    def changes(self) -> ImageChanges | None:
        """Return which images got better or worse; None where there are no images."""
        if self._better.rows is None or self._worse.rows is None:
            return None
        better, worse, same, other = self._counts.tolist()
        return ImageChanges(self._score, better, worse, same, other, self._better.rows, self._worse.rows)

    def _other_truths(self, a: pa.RecordBatch, b: pa.RecordBatch) -> int:
        if self._score.truth is None:
            return 0
        other: Any = pc.not_equal(a[self._score.truth], b[self._score.truth])
        return pc.sum(other).as_py() or 0


def read_images(a: Path, b: Path, measure: Measure) -> JudgedImages | None:
    """Read both ``images.parquet``, rows of one key together; None where they tell nothing of an image."""
    files = pq.ParquetFile(a), pq.ParquetFile(b)
    known = set(files[0].schema_arrow.names) & set(files[1].schema_arrow.names)
    score = next((one for one in measure.image_scores if one.column in known), None)
    if score is None:
        return None
    images = JudgedImages(score, {metric: name for metric, name in measure.shares.items() if name in known})
    for first, second in Joined(*(file.iter_batches(columns=images.columns()) for file in files)):
        images.add(first, second)
    return images


def _yes_and_no(a: Any, b: Any) -> PairedOutcomes:
    """Count yes and no of the same images, without those where one is not known."""
    pairs = [pc.and_(a, b), pc.and_not(a, b), pc.and_not(b, a), pc.invert(pc.or_(a, b))]
    return PairedOutcomes(*(pc.sum(one).as_py() or 0 for one in pairs))
