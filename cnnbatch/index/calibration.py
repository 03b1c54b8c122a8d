"""From a similarity to a probability, and to thresholds at false accept rates, by pairs whose truth is known.

The logarithm of the likelihood ratio is a line in the similarity, which two normal distributions of one
spread have exactly. A probability needs a prior, too, which the pairs can't say: it is named beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnnbatch.errors import UserError
from cnnbatch.metrics.intervals import REPLICATES, percentiles
from cnnbatch.metrics.verification import (
    FacePairs,
    last_within,
    operating_points,
    replicate_weights,
    trials,
    written,
)

RATES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The false accept rates that thresholds are given for."""
POINTS = 200
"""Points of a curve that are kept."""
FEWEST = 10
"""Pairs of each kind that a line is fitted to at least."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least similarity that is accepted at a ``rate``, with its 95 % interval; else why there is none."""

    rate: float
    similarity: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve: the share of ``false`` accepts, that of true ones or of misses, the threshold."""

    false: float
    share: float
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What similarities say of two faces: log likelihood ratio = ``slope`` * similarity + ``offset``.

    ``genuine`` and ``impostor`` count the pairs that it was fitted to, ``failed`` those that had no
    similarity. ``cost`` is what its ratios cost these pairs in bits (`cost_of`): 0 where they are always
    right, 1 where they say nothing.
    """

    slope: float
    offset: float
    genuine: int
    impostor: int
    failed: int
    cost: float
    thresholds: tuple[Threshold, ...]

    def log_likelihood_ratios(self, similarities: ArrayLike) -> Floats:
        """Return how much likelier each similarity (N,) is of one person than of two, natural logarithms."""
        return self.slope * np.asarray(similarities, np.float64) + self.offset

    def probabilities(self, similarities: ArrayLike, prior: float) -> Floats:
        """Return the probabilities that pairs are of one person, where a share ``prior`` of them is."""
        if not 0 < prior < 1:
            raise ValueError(f"Expected a prior between 0 and 1; got {prior}.")
        return sigmoid(self.log_likelihood_ratios(similarities) + log(prior / (1 - prior)))

    def threshold(self, rate: float) -> Threshold:
        """Return the threshold at a false accept rate; raises UserError where it was not measured."""
        for one in self.thresholds:
            if np.isclose(one.rate, rate, rtol=1e-9, atol=0):
                return one
        known = ", ".join(written(one.rate) for one in self.thresholds)
        raise UserError(
            f"expected a false accept rate that was calibrated ({known}), got {written(rate)}\n"
            "  what to do: give one of these as --rate"
        )


def calibrate(pairs: FacePairs, rates: Sequence[float] = RATES, replicates: int = REPLICATES) -> Calibration:
    """Fit a calibration to ``pairs``, whose scores are similarities; those that failed are left out.

    Raises UserError where there are fewer than `FEWEST` pairs of a kind, or where pairs of one person are no
    more alike than those of two.
    """
    known = ~np.isnan(pairs.scores)
    genuine, impostor = pairs.scores[known & pairs.same], pairs.scores[known & ~pairs.same]
    for name, scores in (("one person", genuine), ("two people", impostor)):
        if len(scores) < FEWEST:
            raise UserError(
                f"expected at least {FEWEST} pairs of {name} with a face in each picture, got {len(scores)}\n"
                "  what to do: give more pairs, or more pictures of people whose names are known"
            )
    slope, offset = _line(genuine, impostor)
    if slope <= 0:
        raise UserError(
            "the pairs of one person are no more alike than those of two, so that similarities say nothing\n"
            "  what to do: look whether the column same is 1 for pairs of one person, and 0 else"
        )
    cost = cost_of(slope * genuine + offset, slope * impostor + offset)
    found = thresholds(pairs, rates, replicates)
    return Calibration(slope, offset, len(genuine), len(impostor), int(np.sum(~known)), cost, found)


def thresholds(pairs: FacePairs, rates: Sequence[float], replicates: int) -> tuple[Threshold, ...]:
    """Return the least similarities whose false accept rate is within each of ``rates``; see `at_rates`.

    The intervals are a Poisson bootstrap over people, as in `metrics.verification`.
    """
    chosen = ~pairs.same
    people, points = [pairs.first[chosen], pairs.second[chosen]], operating_points(pairs.scores[chosen])
    everyone = np.unique(np.concatenate(people))
    falsely = trials(pairs.scores[chosen], people, everyone, points)
    drawn = replicate_weights(everyone, replicates)
    return at_rates(falsely.shares, points, drawn, rates, falsely.count, "pairs of two people")


def at_rates(
    shares: Callable[[NDArray[np.uint8] | None], Floats | None],
    points: Floats,
    drawn: Iterable[NDArray[np.uint8]],
    rates: Sequence[float],
    count: int,
    kind: str,
) -> tuple[Threshold, ...]:
    """Return the least similarities that at most a share reaches, for each of ``rates``.

    ``shares`` are what reaches each of the falling ``points`` (T,), of which the first is infinity, with
    weights or without; ``drawn`` are weights of replicates. A rate that ``count`` < 1 / rate trials can't
    resolve has no threshold, and a reason that calls these ``kind``.
    """
    whole = shares(None)
    if whole is None or len(points) == 1:
        return tuple(_unresolved(rate, count, kind) for rate in rates)
    above_all = np.append(np.nextafter(points[1], np.inf), points[1:])  # Finite: it accepts none of these.
    spread = np.array([above_all[_places(each, rates)] for each in map(shares, drawn) if each is not None])
    values = above_all[_places(whole, rates)].tolist()
    return tuple(
        Threshold(rate, value, *percentiles(spread[:, place]))
        if count >= ceil(1 / rate)
        else _unresolved(rate, count, kind)
        for place, (rate, value) in enumerate(zip(rates, values, strict=True))
    )


def rate_words(rate: float) -> str:
    """Return a rate as people read it: 0.001, and from 1e-5 on with an exponent."""
    return f"{rate:g}" if rate >= 1e-4 else written(rate)


def cost_of(genuine: Floats, impostor: Floats) -> float:
    """Return C_llr of log likelihood ratios, in bits a pair: the mean over both kinds of pairs.

    Brümmer and du Preez 2006, "Application-independent evaluation of speaker detection", equation 37.
    """
    missed, accepted = np.logaddexp(0, -genuine).mean(), np.logaddexp(0, impostor).mean()
    return float(missed + accepted) / (2 * log(2))


def sigmoid(logits: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), without an overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def _line(genuine: Floats, impostor: Floats) -> tuple[float, float]:
    """Return the slope and offset of the log likelihood ratio, by logistic regression.

    Both kinds of pairs weigh the same, so that the fit is of the ratio and not of how many pairs of each kind
    there are. The targets are those of Platt 1999, "Probabilistic outputs for support vector machines",
    equation 12: (n + 1) / (n + 2) of n pairs, without which the slope of kinds that do not overlap is
    infinite.
    """
    from sklearn.linear_model import LogisticRegression

    scores = np.concatenate([genuine, impostor])
    middle, spread = scores.mean(), scores.std() or 1.0
    target = np.concatenate([_targets(len(genuine)), 1 - _targets(len(impostor))])
    share = np.concatenate([np.full(len(kind), 1 / len(kind)) for kind in (genuine, impostor)])
    weights = np.concatenate([target * share, (1 - target) * share])  # Each pair is a bit of both kinds.
    inputs = np.tile((scores - middle) / spread, 2)[:, None]
    answers = np.repeat([1, 0], len(scores))
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        inputs, answers, weights * len(scores)
    )
    slope = float(fitted.coef_[0, 0]) / spread
    return slope, float(fitted.intercept_[0]) - slope * middle


def _targets(count: int) -> Floats:
    return np.full(count, (count + 1) / (count + 2))


def _places(shares: Floats, rates: Sequence[float]) -> list[int]:
    """Return the places of the last of rising ``shares`` (T,) that are within each rate."""
    return [last_within(shares, rate) for rate in rates]


def _unresolved(rate: float, count: int, kind: str) -> Threshold:
    few = f"{count:,} {kind} can't resolve a rate of {written(rate)}: {ceil(1 / rate):,} are needed"
    return Threshold(rate, None, reason=few)
