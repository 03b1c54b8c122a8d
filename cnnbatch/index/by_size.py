"""What searches find by the size of the gallery: false positives grow with it, and a threshold with them.

A search is reduced to its most similar others, of each person one. That says what it finds among a random
part of the gallery's people, too: each of its others is there with the probability of that part, and the
first who is there is found. So error rates at a half, a quarter, an eighth … of the gallery are means over
all such parts, not those of one that was drawn. Parts are of people, with all of their faces, since an index
grows by people; a face that nobody has named counts as a person of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.calibration import POINTS, Floats, Point, Threshold, at_rates
from cnnbatch.index.exact import search_exactly
from cnnbatch.metrics.intervals import REPLICATES, percentiles
from cnnbatch.metrics.verification import operating_points, replicate_weights

RATES = (1e-1, 1e-2, 1e-3)
"""The false positive identification rates that thresholds are given for."""
SMALLEST = 100
"""Rows of the smallest gallery that is judged."""
DEPTH = 256
"""The most similar rows of a search, of which its others are."""
NOBODY = 0
"""Stands for the person of a row that has no name, and for the row of a probe that is none."""

_LEAST = 1e-6  # A person whom a search finds more seldom does not count.

Vectors = NDArray[np.float32]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Probes:
    """Searches to be made: ``vectors`` (P, D) of length 1 and the hashes of their people, uint64 (P,).

    ``rows`` int64 (P,) are those of the gallery that the probes themselves are, which are left out of their
    own search; -1 for none. ``absent`` (P,) are those of people who are known not to be in the index.
    """

    vectors: Vectors
    people: Hashes
    rows: NDArray[np.int64]
    absent: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Gallery:
    """What is searched: ``vectors`` (N, D), of which the rows ``live`` (L,) count, with ``people`` (N,)."""

    vectors: NDArray[np.float16] | Vectors
    live: NDArray[np.int64]
    people: Hashes

    def people_of_rows(self) -> Hashes:
        """Return who each row (N,) is of; a row that is `NOBODY`'s is of a person of its own."""
        own = np.arange(1, len(self.people) + 1, dtype=np.uint64)  # No hash of a name is as small.
        return np.where(self.people == NOBODY, own, self.people)


@dataclass(frozen=True, slots=True)
class Searched:
    """What searches found in a gallery of ``rows`` rows of the people ``gallery`` (M,), hashes.

    others: float64 (P, K), the similarities of the most similar people who are not the probe's, falling, each
    by the most similar face, -inf where there are no more; ``of`` uint64 (P, K) who they are. mate: (P,), the
    best similarity of the probe's own person, NaN for none. person, absent: (P,), as in `Probes`.
    """

    others: Floats
    of: Hashes
    mate: Floats
    person: Hashes
    absent: NDArray[np.bool_]
    gallery: Hashes
    rows: int

    def take(self, chosen: NDArray[np.bool_]) -> Searched:
        """Return some of the searches."""
        return Searched(
            self.others[chosen],
            self.of[chosen],
            self.mate[chosen],
            self.person[chosen],
            self.absent[chosen],
            self.gallery,
            self.rows,
        )

    @property
    def strangers(self) -> Searched:
        """The searches for people who are absent."""
        return self.take(self.absent)

    @property
    def mated(self) -> Searched:
        """The searches for people of whom there is another face."""
        return self.take(~self.absent)

    @property
    def people(self) -> int:
        """How many people the gallery has."""
        return len(self.gallery)

    def parts(self) -> Iterator[float]:
        """Yield the parts of the gallery that are judged: 1, 1/2, 1/4 …, of at least `SMALLEST` rows."""
        part = 1.0
        while part == 1 or part * self.rows >= SMALLEST:
            yield part
            part /= 2


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
class Found:
    """The share of searches for strangers that find somebody: FPIR, with its 95 % interval."""

    share: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class AtSize:
    """What holds of a gallery of ``rows`` rows of ``people`` at a false positive identification rate.

    ``threshold`` is the similarity that a candidate needs at least, ``missed`` what is then not found, and
    ``found`` what strangers would find at the threshold of the whole gallery. What ``is_extrapolated`` was
    not measured. ``people`` is 0 where an earlier version measured.
    """

    rows: int
    threshold: Threshold
    missed: Missed
    people: int = 0
    found: Found | None = None
    is_extrapolated: bool = False


def searched(probes: Probes, gallery: Gallery) -> Searched:
    """Return what ``probes`` find; those who are not absent but have no mate are left out.

    A mate that is not among the `DEPTH` most similar rows is none: the search finds others first.
    """
    people = gallery.people_of_rows()
    scores, rows = search_exactly(
        np.ascontiguousarray(probes.vectors), gallery.vectors, DEPTH + 1, _all_or(gallery)
    )
    there = (rows >= 0) & (rows != probes.rows[:, None])
    of = np.where(there, people[rows], np.uint64(NOBODY))
    is_mate = there & (of == probes.people[:, None]) & ~probes.absent[:, None]
    similarity = np.where(there, scores, -np.inf).astype(np.float64)
    mate = np.where(is_mate, similarity, -np.inf).max(axis=1)
    others = np.where(is_mate | _has_come(of), -np.inf, similarity)
    order = np.argsort(-others, axis=1, kind="stable")
    found = Searched(
        np.take_along_axis(others, order, 1),
        np.take_along_axis(of, order, 1),
        np.where(np.isfinite(mate), mate, np.nan),
        probes.people,
        probes.absent,
        np.unique(people[gallery.live]),
        len(gallery.live),
    )
    return found.take(probes.absent | _has_mate(probes, gallery))


def curve(searches: Searched, rates: Sequence[float] = RATES, replicates: int = REPLICATES) -> list[AtSize]:
    """Return the thresholds at each size and rate, the whole gallery first.

    FPIR and FNIR as in `metrics.identification`; the intervals are a Poisson bootstrap over the people who
    are searched for.
    """
    strangers, mated = searches.strangers, searches.mated
    whole = thresholds(strangers, 1, rates, replicates)
    return [
        AtSize(
            round(part * searches.rows),
            threshold,
            missed(mated, part, threshold.similarity, replicates),
            round(part * searches.people),
            found(strangers, part, now.similarity, replicates),
        )
        for part in searches.parts()
        for threshold, now in zip(thresholds(strangers, part, rates, replicates), whole, strict=True)
    ]


def thresholds(
    strangers: Searched, part: float, rates: Sequence[float], replicates: int = REPLICATES
) -> tuple[Threshold, ...]:
    """Return the least similarities that at most a share of strangers finds in a part of the gallery."""
    finds = _finds(strangers, part)
    points = operating_points(finds.scores)
    drawn = _drawn(strangers, replicates)

    def shares(weights: NDArray[np.uint8] | None) -> Floats | None:
        return finds.shares(points, weights)

    return at_rates(shares, points, drawn, rates, finds.searches, "absent probes")


def found(
    strangers: Searched, part: float, threshold: float | None, replicates: int = REPLICATES
) -> Found | None:
    """Return the share of strangers who find somebody in a part of the gallery at or above a threshold."""
    if threshold is None or not len(strangers.person):
        return None
    finds, point = _finds(strangers, part), np.array([threshold])
    shares = (finds.shares(point, weights) for weights in (None, *_drawn(strangers, replicates)))
    share, *replicated = [float(each[0]) for each in shares if each is not None]
    return Found(share, *percentiles(np.array(replicated)))


def missed(mated: Searched, part: float, threshold: float | None, replicates: int = REPLICATES) -> Missed:
    """Return the share of mated searches that do not find their person first, at or above a threshold."""
    if threshold is None or not len(mated.mate):
        return Missed(None, None, None, len(mated.mate))
    misses = 1 - (mated.mate >= threshold) * first_of_all(mated, part)
    drawn = (each.astype(np.int64) for each in _drawn(mated, replicates))
    shares = [float(each @ misses) / int(each.sum()) for each in drawn if each.any()]
    low, high = percentiles(np.array(shares))
    return Missed(float(misses.mean()), low, high, len(misses))


def detection_errors(searches: Searched) -> tuple[Point, ...]:
    """Return FNIR over FPIR in the whole gallery, at some thresholds: detection error trade-off."""
    strangers, mated = searches.strangers, searches.mated
    if not len(strangers.mate) or not len(mated.mate):
        return ()
    finds = _finds(strangers, 1)
    first = mated.mate[(first_of_all(mated, 1) == 1)]
    points = np.unique(np.concatenate([finds.scores, first]))[::-1]
    points = points[np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))]
    false = np.searchsorted(np.sort(-finds.scores), -points, side="right") / finds.searches
    right = np.searchsorted(np.sort(-first), -points, side="right") / len(mated.mate)
    return tuple(map(Point, false.tolist(), (1 - right).tolist(), points.tolist()))


def first_of_all(mated: Searched, part: float) -> Floats:
    """Return the probability (Q,) that nobody else in a part of the gallery is as similar as the mate is."""
    ahead = (mated.others >= mated.mate[:, None]).sum(axis=1)
    likely: Floats = np.where(np.isnan(mated.mate), 0.0, (1.0 - part) ** ahead)
    return likely


@dataclass(frozen=True, slots=True)
class _Finds:
    """What ``searches`` may find first, falling by ``scores`` (E,): whose it is, and how probable it is."""

    scores: Floats
    of: NDArray[np.intp]
    probability: Floats
    searches: int

    def shares(self, points: Floats, weights: NDArray[np.uint8] | None = None) -> Floats | None:
        """Return the share of searches that find somebody at or above each of the falling ``points`` (T,).

        ``weights`` (P,) are of the searches; None where nothing has weight.
        """
        total = self.searches if weights is None else int(weights.sum())
        if not total:
            return None
        each = self.probability if weights is None else self.probability * weights[self.of]
        sums = np.append(0.0, np.cumsum(each))
        shares: Floats = sums[np.searchsorted(-self.scores, -points, side="right")] / total
        return shares


def _finds(searches: Searched, part: float) -> _Finds:
    """Return what is found first: the k-th other person, where all before it are not in the part."""
    probability: Floats = part * (1.0 - part) ** np.arange(searches.others.shape[1], dtype=np.float64)
    width = int((probability > _LEAST).sum())
    scores = searches.others[:, :width].ravel()
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    return _Finds(scores[order], order // width, probability[order % width], len(searches.others))


def _drawn(searches: Searched, replicates: int) -> Iterator[NDArray[np.uint8]]:
    """Yield how often each search (P,) counts in each replicate: as often as its person does."""
    everyone, who = np.unique(searches.person, return_inverse=True)
    return (weights[who] for weights in replicate_weights(everyone, replicates))


def _has_come(people: Hashes) -> NDArray[np.bool_]:
    """Say of each person (P, K) whether the same stands farther to the left of the same line."""
    order = np.argsort(people, axis=1, kind="stable")
    ordered = np.take_along_axis(people, order, 1)
    again = np.zeros(people.shape, np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    has_come = np.empty_like(again)
    np.put_along_axis(has_come, order, again, 1)
    return has_come


def _has_mate(probes: Probes, gallery: Gallery) -> NDArray[np.bool_]:
    """Say of each probe (P,) whether the gallery has another face of its person."""
    known, counts = np.unique(gallery.people[gallery.live], return_counts=True)
    place = np.minimum(np.searchsorted(known, probes.people), len(known) - 1)
    there = np.where(known[place] == probes.people, counts[place], 0) - (probes.rows >= 0)
    return np.asarray((there > 0) & (probes.people != NOBODY), np.bool_)


def _all_or(gallery: Gallery) -> NDArray[np.int64] | None:
    return None if len(gallery.live) == len(gallery.vectors) else gallery.live
