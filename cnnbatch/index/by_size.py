"""What searches find by the size of the gallery: false positives grow with it, and a threshold with them.

One pass over an index measures all sizes: each row belongs to the whole, and by the hash of its id to a
random half, quarter, eighth and so on of it. Of each search the best similarity at each size is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.calibration import Threshold, at_rates
from cnnbatch.metrics.identification import Searches
from cnnbatch.metrics.intervals import REPLICATES, percentiles
from cnnbatch.metrics.verification import replicate_weights, trials

RATES = (1e-1, 1e-2, 1e-3)
"""The false positive identification rates that thresholds are given for."""
SMALLEST = 100
"""Rows of the smallest gallery that is judged."""
NOBODY = 0
"""Stands for the person of a row that has no name, and for the row of a probe that is none."""

_LEVELS = 20  # Of which each is half of the one before: a millionth of the rows at last.

Vectors = NDArray[np.float32]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Probes:
    """Searches to be made: ``vectors`` (P, D) of length 1 and the hashes of their people, uint64 (P,).

    ``rows`` (P,) are the hashes of the ids of those rows of the index that the probes themselves are, which
    are left out of their own search; `NOBODY` for none. ``absent`` (P,) are those of people who are known not
    to be in the index.
    """

    vectors: Vectors
    people: Hashes
    rows: Hashes
    absent: NDArray[np.bool_]


class SearchesBySize:
    """The best similarities of probes among mates and among others, at each size of the gallery.

    Takes 4 bytes a probe and size, beside the similarities of one block of rows.
    """

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._mate = np.full(len(probes.vectors), -np.inf, np.float32)
        self._other = np.full((_LEVELS, len(probes.vectors)), -np.inf, np.float32)
        self._rows = np.zeros(_LEVELS, np.int64)

    def add(self, ids: Hashes, vectors: Vectors, people: Hashes) -> None:
        """Search a block of rows: hashes of ``ids`` and ``people`` (N,), ``vectors`` (N, D) of length 1."""
        levels = levels_of(ids)
        order = np.argsort(levels, kind="stable")
        ids, vectors, people, levels = ids[order], vectors[order], people[order], levels[order]
        similarity = self._probes.vectors @ vectors.T  # [P, N]
        similarity[self._probes.rows[:, None] == ids[None]] = -np.inf
        is_mate = (self._probes.people[:, None] == people[None]) & (people != NOBODY)[None]
        is_mate &= ~self._probes.absent[:, None]
        np.maximum(self._mate, similarity.max(1, initial=-np.inf, where=is_mate), out=self._mate)
        starts = np.searchsorted(levels, np.arange(_LEVELS + 1))
        for level, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            best = similarity[:, start:end].max(1, initial=-np.inf, where=~is_mate[:, start:end])
            np.maximum(self._other[level], best, out=self._other[level])
        self._rows += np.bincount(levels, minlength=_LEVELS)

    def sizes(self) -> list[int]:
        """Return how many rows each gallery has, from the whole to the smallest of at least `SMALLEST`.

        The whole is always there.
        """
        sizes = np.cumsum(self._rows[::-1])[::-1]
        return [int(size) for place, size in enumerate(sizes) if size >= SMALLEST or not place]

    def at(self, place: int) -> Searches:
        """Return the searches of the gallery at a ``place`` of `sizes`.

        All mates of a probe are in every gallery, so that only how many others there are differs.
        """
        mate = self._mate.astype(np.float64)
        other = self._other[place:].max(0).astype(np.float64)
        mated = np.isfinite(mate) & ~self._probes.absent
        chosen = mated | self._probes.absent  # A row whose person has no other row is neither.
        found = Searches(
            self._probes.people,
            mated,
            np.zeros(len(mate), np.bool_),
            np.where(mated, np.where(mate > other, 1, 2), 0).astype(np.int32),
            np.where(np.isfinite(mate), mate, np.nan),
            np.where(np.isfinite(other), other, np.nan),
            1,
        )
        return found.take(np.flatnonzero(chosen))


@dataclass(frozen=True, slots=True)
class Missed:
    """The share of ``searches`` for people who are there that find nobody, or somebody else first.

    It is FNIR at rank 1, with its 95 % interval; None where there are no such searches, or no threshold.
    """

    share: float | None
    low: float | None
    high: float | None
    searches: int


@dataclass(frozen=True, slots=True)
class AtSize:
    """What holds of a gallery of ``rows`` rows at a false positive identification rate.

    ``threshold`` is the similarity that a candidate needs at least, ``missed`` what is then not found.
    """

    rows: int
    threshold: Threshold
    missed: Missed


def curve(
    searches: SearchesBySize, rates: Sequence[float] = RATES, replicates: int = REPLICATES
) -> list[AtSize]:
    """Return the thresholds at each size and rate, the whole gallery first.

    FPIR and FNIR as in `metrics.identification`; the intervals are a Poisson bootstrap over people.
    """
    return [
        AtSize(rows, threshold, _missed(found, threshold.similarity, replicates))
        for place, rows in enumerate(searches.sizes())
        for found in (searches.at(place),)
        for threshold in _thresholds(found, rates, replicates)
    ]


def levels_of(ids: Hashes) -> NDArray[np.int64]:
    """Return of how small a part of the gallery each row (N,) still is one: 0 the whole, 1 a half, and so on.

    ``ids`` are hashes of the rows' ids: the level is the number of zeros at their end.
    """
    lowest = ids & (~ids + np.uint64(1))
    zeros = np.log2(np.maximum(lowest, 1).astype(np.float64))  # Exact: powers of two.
    return np.minimum(np.where(ids == 0, _LEVELS, zeros), _LEVELS - 1).astype(np.int64)


def _thresholds(searches: Searches, rates: Sequence[float], replicates: int) -> tuple[Threshold, ...]:
    absent = ~searches.mated
    people = [searches.person[absent]]
    return at_rates(searches.other[absent], people, rates, replicates, "absent probes")


def _missed(searches: Searches, threshold: float | None, replicates: int) -> Missed:
    """Return the share of mated searches that do not find their person first, at or above a threshold."""
    mated = int(searches.mated.sum())
    if threshold is None or not mated:
        return Missed(None, None, None, mated)
    first = np.where(searches.rank == 1, searches.mate, np.nan)[searches.mated]
    person = searches.person[searches.mated]
    people = np.unique(person)
    found = trials(first, [person], people, np.array([threshold]))
    drawn = [found.shares(weights) for weights in replicate_weights(people, replicates)]
    low, high = percentiles(1 - np.array([shares[0] for shares in drawn if shares is not None]))
    accepted, total = found.accepted()
    return Missed(1 - float(accepted[0]) / total, low, high, mated)
