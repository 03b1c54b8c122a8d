"""Error rates of galleries larger than the one that there is: extrapolated, each with its interval.

**The law.** How many people of a gallery look like a stranger, that is reach a threshold, differs from
stranger to stranger: some look like nobody and some like many (Doddington et al. 1998, "Sheep, goats, lambs
and wolves"). Where each stranger has a rate of his own, which is gamma distributed, and people come
independently, the number is negative binomial (Greenwood and Yule 1920), and a stranger finds somebody among
n people with the probability

    FPIR(n) = 1 - (1 + m n / (a N)) ** -a

m is the mean number among the N people who were searched, and a the shape of the gamma distribution, by the
share of strangers who find nobody among them (Anscombe 1950, "Sampling theory of the negative binomial and
logarithmic series distributions"), so that the law goes through what was measured. With a -> infinity all
strangers are alike, and it is FPIR(n) = 1 - (1 - FAR) ** n but for terms of FAR ** 2 (Grother and Phillips
2004, "Models of large population recognition performance"), which is taken where the counts do not spread. It
overestimates where strangers differ. The one premise: people who come are like those who are there.

**How far.** At a rate, a larger gallery needs a higher threshold, which fewer strangers reach among those who
were searched. Where these are fewer than `FEWEST`, it ends.

**The intervals** are a delete-a-group jackknife (Kott 2001), over strangers and over people of the gallery,
whose variances add up (as in Owen and Eckles 2012): both were drawn, and another gallery has other people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.by_size import AtSize, Found, Hashes, Missed, Searched, first_of_all
from cnnbatch.index.calibration import Floats, Threshold, sigmoid

FEWEST = 10
"""Strangers who reach a threshold, at least, where something is said of it."""
GROUPS = 20
"""Groups of people, each of which is left out once."""
MOST_TIMES = 1_024
"""Galleries that are more times as large as the one that there is are not judged."""

_POINTS = 500
_STEPS = 60  # of a bisection between 1e-6 and 1e6
_Z = 1.959963984540054  # The normal distribution's 97.5 % point.
Scale = Callable[[Floats], Floats]
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Law:
    """How many of ``people`` a stranger is as similar to as each of the falling ``points`` (T,).

    ``mean`` (T,) is the mean number, ``shape`` (T,) that of the gamma distribution, infinite where all
    strangers are alike.
    """

    points: Floats
    mean: Floats
    shape: Floats
    people: int

    def intensity(self, size: float) -> Floats:
        """Return -log(1 - FPIR) among ``size`` people, at each point (T,); it never falls."""
        mean = self.mean * size / self.people
        spread = np.where(np.isfinite(self.shape), self.shape, 1.0)
        found = np.where(np.isfinite(self.shape), spread * np.log1p(mean / spread), mean)
        return np.maximum.accumulate(found)

    def at(self, similarities: Floats, size: float) -> Floats:
        """Return -log(1 - FPIR) at similarities of any shape; 0 above all points."""
        known = np.append(0.0, self.intensity(size))
        found: Floats = known[np.searchsorted(-self.points, -similarities, side="right")]
        return found

    def threshold(self, rate: float, size: float) -> float:
        """Return the least point at which FPIR among ``size`` people is within a rate, or just above all."""
        within = int(np.searchsorted(-np.expm1(-self.intensity(size)), rate, side="right"))
        return float(self.points[within - 1] if within else np.nextafter(self.points[0], np.inf))


def law_of(strangers: Searched) -> Law:
    """Return the law of what strangers find, of whom at least one finds somebody."""
    best = np.sort(strangers.others.max(axis=1))  # [P]
    every = np.sort(strangers.others[np.isfinite(strangers.others)])  # [E]
    points = _thinned(np.unique(best[np.isfinite(best)])[::-1])
    mean = (len(every) - np.searchsorted(every, points)) / len(best)
    none = np.searchsorted(best, points) / len(best)
    needed = -np.log(np.maximum(none, 0.5 / len(best)))
    shape = _shape(mean, needed)
    return Law(points, np.where(np.isfinite(shape), mean, needed), shape, strangers.people)


def beyond(searches: Searched, measured: Sequence[AtSize]) -> list[AtSize]:
    """Return what is to be expected of galleries 2, 4, 8 … times as large, at each rate that was measured.

    ``measured`` are those of the whole gallery. Sizes that the strangers can't support are left out.
    """
    if not np.isfinite(searches.others[searches.absent]).any():
        return []
    estimates = _Estimates(searches)
    return [found for one in measured for found in _larger(estimates, one)]


def strangers_needed(rate: float, times: float) -> int:
    """Return how many strangers judge a gallery so many times as large as one that is searched, at a rate."""
    return ceil(FEWEST * max(1.0, times) / rate)


def _larger(estimates: _Estimates, now: AtSize) -> Iterator[AtSize]:
    """Yield what is to be expected at the rate of ``now``, the whole gallery."""
    times = 2
    while now.threshold.similarity is not None and times <= MOST_TIMES:
        found = estimates.at(now, times)
        if found is None:
            return
        yield found
        times *= 2


class _Estimate:
    """What one set of searches says of larger galleries."""

    def __init__(self, searches: Searched) -> None:
        self._mated, self._people = searches.mated, searches.people
        self._law = law_of(searches.strangers)

    def threshold(self, rate: float, size: int) -> float:
        """Return the threshold at a rate among ``size`` people."""
        return self._law.threshold(rate, size)

    def found(self, threshold: float, size: int) -> float:
        """Return FPIR at a threshold."""
        return float(-np.expm1(-self._law.at(np.array([threshold]), size))[0])

    def missed(self, rate: float, size: int) -> float:
        """Return FNIR at rank 1 with the threshold at a rate.

        A mate who is first among those who are there stays so, where none of those who come is as similar to
        the probe, as strangers are to each other.
        """
        mate = np.nan_to_num(self._mated.mate, nan=-np.inf)
        more = self._law.at(mate, size) - self._law.at(mate, self._people)
        first = first_of_all(self._mated, 1.0) * np.exp(-np.maximum(more, 0.0))
        missed = 1 - float(np.mean((mate >= self.threshold(rate, size)) * first))
        half = 0.5 / len(mate)  # A logit has to be finite.
        return min(max(missed, half), 1 - half)


class _Estimates:
    """The estimate of all searches, and those without each group of strangers, or of the gallery's people."""

    def __init__(self, searches: Searched) -> None:
        self._searches, self._whole = searches, _Estimate(searches)
        self._has_mates = bool(len(searches.mated.mate))
        self._ways = [
            [_Estimate(one) for one in way if self._is_enough(one)]
            for way in (_without_strangers(searches), _without_people(searches))
        ]

    def at(self, now: AtSize, times: int) -> AtSize | None:
        """Return what is to be expected of a gallery so many times as large, at the rate of ``now``.

        None where too few strangers reach the threshold that it needs.
        """
        rate, size = now.threshold.rate, times * self._searches.people
        threshold = self._interval(lambda one: one.threshold(rate, size), _same, _same)
        if _reaching(self._searches.strangers, threshold[0]) < FEWEST:
            return None
        limit, mated = float(now.threshold.similarity or 0), len(self._searches.mated.mate)
        missed: tuple[float | None, float | None, float | None] = None, None, None
        if self._has_mates:
            missed = self._interval(lambda one: one.missed(rate, size), _logit, sigmoid)
        found = self._interval(lambda one: one.found(limit, size), _to_log, _from_log)
        rows = times * self._searches.rows
        return AtSize(rows, Threshold(rate, *threshold), Missed(*missed, mated), size, Found(*found), True)

    def _is_enough(self, searches: Searched) -> bool:
        """Say whether there are a stranger who finds somebody and, where there were any, a mate."""
        found = bool(np.isfinite(searches.others[searches.absent]).any())
        return found and not (self._has_mates and searches.absent.all())

    def _interval(
        self, number: Callable[[_Estimate], float], scale: Scale, back: Scale
    ) -> tuple[float, float, float]:
        """Return a number of all searches with its 95 % interval, which is symmetric on a scale."""
        value = number(self._whole)
        replicates = [scale(np.array([number(one) for one in way])) for way in self._ways if way]
        variance = sum((len(one) - 1) * float(np.var(one)) for one in replicates)
        middle, half = float(scale(np.array([value]))[0]), _Z * variance**0.5
        low, high = back(np.array([middle - half, middle + half])).tolist()
        return value, low, high


def _without_strangers(searches: Searched) -> Iterator[Searched]:
    """Yield the searches without a group of strangers, each group once."""
    groups = np.where(searches.absent, _groups(searches.person), GROUPS)
    return (searches.take(groups != group) for group in range(GROUPS))


def _without_people(searches: Searched) -> Iterator[Searched]:
    """Yield the searches in the gallery without a group of its people, each group once."""
    of, known = _groups(searches.of), _groups(searches.gallery)
    own = np.where(searches.absent, GROUPS, _groups(searches.person))
    for group in range(GROUPS):
        others = np.where(of == group, -np.inf, searches.others)
        order = np.argsort(-others, axis=1, kind="stable")
        found = Searched(
            np.take_along_axis(others, order, 1),
            np.take_along_axis(searches.of, order, 1),
            searches.mate,
            searches.person,
            searches.absent,
            searches.gallery[known != group],
            searches.rows,
        )
        yield found.take(own != group)


def _groups(people: Hashes) -> NDArray[np.int64]:
    """Return the group of each person, by the hash."""
    return ((people * _MIX >> np.uint64(40)) % np.uint64(GROUPS)).astype(np.int64)


def _reaching(strangers: Searched, threshold: float) -> int:
    """Return how many strangers, as people, find somebody at a threshold."""
    return len(np.unique(strangers.person[strangers.others.max(axis=1) >= threshold]))


def _shape(mean: Floats, needed: Floats) -> Floats:
    """Return the a (T,) with a log(1 + mean / a) = needed; infinite where the mean is no larger."""
    low, high = np.full(mean.shape, -6.0), np.full(mean.shape, 6.0)  # Powers of ten.
    for _ in range(_STEPS):
        middle = (low + high) / 2
        shape = 10.0**middle
        is_less = shape * np.log1p(mean / shape) < needed
        low, high = np.where(is_less, middle, low), np.where(is_less, high, middle)
    return np.where(mean > needed * (1 + 1e-9), 10.0**low, np.inf)


def _thinned(points: Floats) -> Floats:
    """Return at most `_POINTS` of falling points, the first ones closest together."""
    if len(points) <= _POINTS:
        return points
    some: Floats = points[np.unique(np.geomspace(1, len(points), _POINTS).astype(int)) - 1]
    return some


def _same(values: Floats) -> Floats:
    return values


def _to_log(shares: Floats) -> Floats:
    found: Floats = np.log(np.maximum(-np.log1p(-np.minimum(shares, 1 - 1e-12)), 1e-12))
    return found


def _from_log(values: Floats) -> Floats:
    shares: Floats = -np.expm1(-np.exp(values))
    return shares


def _logit(shares: Floats) -> Floats:
    found: Floats = np.log(shares) - np.log1p(-shares)
    return found
