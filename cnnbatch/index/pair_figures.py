"""What a calibration was measured by, as a report shows it: the pairs, and how well the line fits them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.index.calibration import POINTS, RATES, Floats, Point
from cnnbatch.index.known_pairs import KnownPairs
from cnnbatch.index.manifest import Measured
from cnnbatch.metrics import verification
from cnnbatch.metrics.intervals import REPLICATES, percentiles
from cnnbatch.metrics.verification import FacePairs, Trials, replicate_weights, trials

BINS = 60
"""Columns of the histogram of similarities."""
STEPS = 8
"""Bins of the ratios have edges at so many quantiles of each kind of pairs."""
FEWEST = 5
"""Pairs of each kind that a ratio is measured with at least."""
HARDEST = 8
"""Pairs of each kind that are shown."""

Ids: TypeAlias = "pa.ChunkedArray[Any]"


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many pairs of each kind have which similarity, in equal bins from ``low`` to ``high``."""

    low: float
    high: float
    genuine: tuple[int, ...]
    impostor: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MeasuredRatio:
    """How much likelier similarities from ``start`` to ``end`` are of one person than of two.

    ``ratio`` is the natural logarithm, with its 95 % interval by a bootstrap over people; ``similarity`` is
    the mean of the pairs, each kind weighing the same.
    """

    start: float
    end: float
    similarity: float
    genuine: int
    impostor: int
    ratio: float
    low: float | None
    high: float | None

    def has(self, ratio: float) -> bool:
        """Say whether a ratio is within the interval."""
        return self.low is not None and self.high is not None and self.low <= ratio <= self.high


@dataclass(frozen=True, slots=True)
class HardPair:
    """A pair of rows of the index, by their ids, that is hard to tell from the other kind."""

    same: bool
    similarity: float
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class PairFigures:
    """What the pairs of a calibration are like; ``roc`` has true accepts over false ones."""

    metrics: dict[str, Measured]
    histogram: Histogram
    ratios: tuple[MeasuredRatio, ...]
    roc: tuple[Point, ...]
    hardest: tuple[HardPair, ...]

    def accepted(self, rate: float) -> float | None:
        """Return the share of pairs of one person that is accepted at a false accept rate, where known."""
        found = self.metrics.get(f"TAR@FAR={verification.written(rate)}")
        return None if found is None else found.value


def figures_of(known: KnownPairs, ids: Ids, replicates: int = REPLICATES) -> PairFigures:
    """Return what pairs are like, of which there are both kinds; ``ids`` are those of the index's rows."""
    judged = verification.result(known.pairs, (1e-1, *RATES), replicates)
    return PairFigures(
        {name: Measured.of(value) for name, value in judged.metrics.items()},
        histogram(known.pairs),
        ratios(known.pairs, replicates),
        _curve(judged.tables["roc"]),
        hardest(known, ids),
    )


def histogram(pairs: FacePairs) -> Histogram:
    """Return the pairs that have a similarity by it."""
    known = ~np.isnan(pairs.scores)
    low, high = float(pairs.scores[known].min()), float(pairs.scores[known].max())
    genuine, impostor = (
        tuple(np.histogram(pairs.scores[known & kind], BINS, (low, high))[0].tolist())
        for kind in (pairs.same, ~pairs.same)
    )
    return Histogram(low, high, genuine, impostor)


def ratios(pairs: FacePairs, replicates: int = REPLICATES) -> tuple[MeasuredRatio, ...]:
    """Return the likelihood ratios of similarities in bins, those that have `FEWEST` pairs of each kind."""
    known = ~np.isnan(pairs.scores)
    edges = _edges(pairs.scores[known & pairs.same], pairs.scores[known & ~pairs.same])
    bins = _Bins(pairs, edges)
    (genuine, impostor), found = bins.counts(None), bins.ratios(None)
    logs = np.array([bins.ratios(weights) for weights in bins.drawn(replicates)])
    return tuple(
        MeasuredRatio(
            float(edges[place]),
            float(edges[place + 1]),
            _middle(pairs, edges[place], edges[place + 1]),
            int(genuine[place]),
            int(impostor[place]),
            float(found[place]),
            *percentiles(logs[:, place]),
        )
        for place in np.flatnonzero((genuine >= FEWEST) & (impostor >= FEWEST))
    )


def hardest(known: KnownPairs, ids: Ids) -> tuple[HardPair, ...]:
    """Return the pairs of two people that are most alike, then those of one that are least."""
    scores, same = known.pairs.scores, known.pairs.same
    ranks = ((-scores, ~same), (scores, same))
    places = np.concatenate([_first(rank, kind) for rank, kind in ranks])
    a, b = (ids.take(pa.array(rows[places])).to_pylist() for rows in (known.first, known.second))
    return tuple(
        HardPair(bool(same[place]), float(scores[place]), str(one), str(other))
        for place, one, other in zip(places, a, b, strict=True)
    )


class _Bins:
    """Pairs of both kinds between ``edges`` (B + 1,), which rise, to be counted with weights of people."""

    def __init__(self, pairs: FacePairs, edges: Floats) -> None:
        self._people = np.unique(np.append(pairs.first, pairs.second))
        kinds = ((pairs.same, [pairs.first]), (~pairs.same, [pairs.first, pairs.second]))
        falling = np.append(np.nextafter(edges[-1], np.inf), edges[-2::-1])  # The last bin has its end.
        self._kinds: list[Trials] = [
            trials(pairs.scores[chosen], [who[chosen] for who in of], self._people, falling)
            for chosen, of in kinds
        ]

    def drawn(self, replicates: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the weights of people in each replicate."""
        return replicate_weights(self._people, replicates)

    def counts(self, weights: NDArray[np.uint8] | None) -> list[NDArray[np.int64]]:
        """Return how many pairs of one person, and of two, are in each bin (B,)."""
        return [np.diff(kind.accepted(weights)[0])[::-1] for kind in self._kinds]

    def ratios(self, weights: NDArray[np.uint8] | None) -> Floats:
        """Return the logarithm of the likelihood ratio in each bin (B,), NaN where a kind has no pair."""
        genuine, impostor = (each / max(1, each.sum()) for each in map(np.asarray, self.counts(weights)))
        found: Floats = np.full(genuine.shape, np.nan)
        there = (genuine > 0) & (impostor > 0)
        found[there] = np.log(genuine[there] / impostor[there])
        return found


def _middle(pairs: FacePairs, start: float, end: float) -> float:
    """Return the mean similarity of the pairs in a bin, each kind weighing the same."""
    within = (pairs.scores >= start) & (pairs.scores <= end)
    return float(np.mean([pairs.scores[within & kind].mean() for kind in (pairs.same, ~pairs.same)]))


def _edges(genuine: Floats, impostor: Floats) -> Floats:
    """Return rising edges of bins, which are narrow where pairs of either kind are many."""
    shares = np.linspace(0, 1, STEPS + 1)
    return np.unique(np.concatenate([np.quantile(genuine, shares), np.quantile(impostor, shares)]))


def _first(ranks: Floats, kind: NDArray[np.bool_]) -> NDArray[np.intp]:
    places = np.flatnonzero(kind & ~np.isnan(ranks))
    return places[np.argsort(ranks[places], kind="stable")[:HARDEST]]


def _curve(roc: pa.Table) -> tuple[Point, ...]:
    """Return points of a ROC that are spread over both of its axes, the logarithm of one."""
    rows = roc.to_pylist()
    step = max(1, -(-len(rows) // POINTS))
    chosen = [*rows[::step], *(rows[-1:] if (len(rows) - 1) % step else [])]
    return tuple(
        Point(row["far"], row["tar"], row["threshold"] if np.isfinite(row["threshold"]) else None)
        for row in chosen
    )
