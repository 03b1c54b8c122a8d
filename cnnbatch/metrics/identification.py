"""Face identification: how well searches of a gallery find a person who is in it, and only then.

A search is reduced to its mate's rank and score and the best score of anyone else, which is all that the
numbers need: 30 bytes a search. The price: the gallery is fixed, so the intervals say nothing of others.

A search is mated where the probe's person is in the gallery. One that failed (the probe gave no
embedding) returns no candidate and stays in the denominator: mated it is a miss, non-mated it is no false
positive (Grother, Ngan, Hanaoka: FRVT Part 2: Identification, NISTIR 8271). A mate's rank is one more
than the number of others with scores no lower, so it ranks behind its equals (Phillips, Grother,
Micheals: Evaluation methods in face recognition, 2005; so does bob.measure): a model that gives everyone
one score finds nobody.

The intervals are a Poisson bootstrap over the people searched for, since searches for one person are
alike. A perfect number's interval has no width, as in any bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from cnnbatch.metrics import Evaluated, Value
from cnnbatch.metrics.intervals import REPLICATES
from cnnbatch.metrics.verification import (
    Names,
    Trials,
    last_within,
    name_hashes,
    operating_points,
    replicate_weights,
    thinned,
    trials,
    value,
    written,
)

FPIRS = (1e-1, 1e-2, 1e-3)
"""The false positive identification rates at which FNIR is given, unless said."""
RANKS = (1, 5, 10)
"""The ranks that are headline numbers."""
MOST_RANKS = 100
"""The most rows of the CMC's table."""


@dataclass(frozen=True, slots=True)
class Searches:
    """Searches, one row each.

    person: uint64 (N,), a hash of the probe's person. mated, failed: bool (N,). rank: int32 (N,), the best
    mate's from 1; 0 where no candidate is one. mate, other: float64 (N,), the best score of a mate and
    of anyone else; NaN where there is none. depth: how many candidates each search gives at least.
    """

    person: NDArray[np.uint64]
    mated: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    rank: NDArray[np.int32]
    mate: NDArray[np.float64]
    other: NDArray[np.float64]
    depth: int

    def take(self, rows: NDArray[np.intp]) -> Searches:
        """Return some of the searches."""
        return Searches(
            self.person[rows],
            self.mated[rows],
            self.failed[rows],
            self.rank[rows],
            self.mate[rows],
            self.other[rows],
            self.depth,
        )


def partial(
    people: Names,
    failed: ArrayLike,
    scores: ArrayLike,
    gallery: Names,
    candidates: ArrayLike | None = None,
) -> Searches:
    """Return a block of searches, reduced.

    people (N,): the probes' people by name. failed (N,): whether the probe gave no embedding; its scores
    count for nothing. scores (N, K): similarity, higher is more alike; NaN for no candidate, and for an
    entry of the gallery that itself failed. gallery (G,): the people enrolled, one name an entry; a rank
    counts entries, so enrol each person once for ranks of people. candidates (N, K): which entry each
    score is of, where a search gives its best K in any order, -1 for none; None: all, K is G.

    Takes about 20 bytes a score. Raises ValueError where shapes differ, a score is infinite, a name is
    null, or a candidate is no entry.
    """
    known, without = np.asarray(scores, np.float64), np.asarray(failed, np.bool_)
    person, enrolled = name_hashes(people), name_hashes(gallery)
    entries = np.arange(len(enrolled))[None] if candidates is None else np.asarray(candidates, np.int64)
    _check(known, without, len(person), len(enrolled), entries)
    scored = np.where(np.isnan(known) | without[:, None], -np.inf, known)
    is_mate = enrolled[entries] == person[:, None]  # (N, K)
    mate = np.max(scored, axis=1, initial=-np.inf, where=is_mate)
    other = np.max(scored, axis=1, initial=-np.inf, where=~is_mate)
    ahead = np.count_nonzero(~is_mate & (scored >= mate[:, None]), axis=1)
    return Searches(
        person,
        np.isin(person, enrolled),
        without,
        np.where(mate > -np.inf, 1 + ahead, 0).astype(np.int32),
        _nan_for_none(mate),
        _nan_for_none(other),
        known.shape[1],
    )


def merge(partials: Iterable[Searches]) -> Searches:
    """Return the searches of all ``partials``, at least one, in their order."""
    parts = list(partials)
    return Searches(
        np.concatenate([part.person for part in parts]),
        np.concatenate([part.mated for part in parts]),
        np.concatenate([part.failed for part in parts]),
        np.concatenate([part.rank for part in parts]),
        np.concatenate([part.mate for part in parts]),
        np.concatenate([part.other for part in parts]),
        min((part.depth for part in parts if len(part.person)), default=0),
    )


def result(
    merged: Searches, fpirs: Sequence[float] = FPIRS, rank: int = 1, replicates: int = REPLICATES
) -> Evaluated:
    """Return the closed-set ranks 1, 5, 10 and the open-set FNIR at each of ``fpirs``.

    All are shares from 0 to 1 but ``failed_probes``, a count. Tables: ``cmc`` (rank, rate: up to 100),
    ``det`` (threshold, fpir, fnir: at most 1,000 operating points, those at ``fpirs`` among them; the
    threshold infinity returns nobody).

    rankK: the share of mated searches whose mate is among the best K (cumulative match characteristic).
    FNIR@FPIR: FPIR(T) is the share of non-mated searches with any candidate at or above T, FNIR(R, T) the
    share of mated ones whose mate isn't both among the best R = ``rank`` and at or above T (ISO/IEC
    19795-1; NISTIR 8271), at the least T whose FPIR is no more than that; None where fewer
    than 1/FPIR non-mated searches can't resolve it. Raises ValueError where one of ``fpirs`` is not between
    0 and 1 or ``rank`` is less than 1.
    """
    if rank < 1 or not all(0 < fpir < 1 for fpir in fpirs):
        raise ValueError(f"Expected a rank from 1 and rates between 0 and 1; got {rank} and {list(fpirs)}.")
    people = np.unique(merged.person)
    found, open_set = _found(merged, people), _open_set(merged, people, rank)
    numbers = _numbers(found, open_set, fpirs)
    spread = [_numbers(found, open_set, fpirs, each) for each in replicate_weights(people, replicates)]
    reasons = {
        **{f"rank{k}": _unknown_rank(merged, k) for k in RANKS},
        **{f"FNIR@FPIR={written(fpir)}": _unknown_fnir(merged, rank, fpir) for fpir in fpirs},
    }
    mated = int(merged.mated.sum())
    metrics = {
        name: value(numbers[at], [row[at] for row in spread], mated, reason)
        for at, (name, reason) in enumerate(reasons.items())
    }
    failed = Value(float(merged.failed.sum()), count=len(merged.failed))
    tables = {"cmc": _cmc(merged), "det": _det(open_set, fpirs)}
    return Evaluated({**metrics, "failed_probes": failed}, tables)


@dataclass(frozen=True, slots=True)
class _OpenSet:
    """Searches to be counted at thresholds, float64 (T,); a mated one by its mate, if in the best R."""

    thresholds: NDArray[np.float64]
    mated: Trials
    others: Trials

    def rates(
        self, weights: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return FPIR and 1 - FNIR, float64 (T,); None where a kind of search has no weight."""
        fpir, tpir = self.others.shares(weights), self.mated.shares(weights)
        return None if fpir is None or tpir is None else (fpir, tpir)


def _check(
    scores: NDArray[np.float64],
    failed: NDArray[np.bool_],
    probes: int,
    gallery: int,
    candidates: NDArray[np.int64],
) -> None:
    """Raise ValueError where a block doesn't fit together."""
    if scores.ndim != 2 or len(scores) != probes or failed.shape != (probes,):
        raise ValueError(f"Expected scores (N, K) and failed (N,) for {probes:,} probes; got {scores.shape}.")
    if candidates.shape not in (scores.shape, (1, scores.shape[1])):
        raise ValueError(f"Expected scores of the candidates {candidates.shape}; got {scores.shape}.")
    if np.isinf(scores).any():
        raise ValueError("Expected finite scores, NaN where there is no candidate; some are infinite.")
    least = np.where(np.isnan(scores), -1, 0)
    if not gallery or ((candidates < least) | (candidates >= gallery)).any():
        raise ValueError(f"Expected candidates among the {gallery:,} entries of the gallery.")


def _nan_for_none(best: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(best == -np.inf, np.nan, best)


def _open_set(searches: Searches, people: NDArray[np.uint64], rank: int) -> _OpenSet:
    mated, others = searches.mated, ~searches.mated
    within = (searches.rank >= 1) & (searches.rank <= rank)
    mates = np.where(within, searches.mate, np.nan)[mated]
    false = searches.other[others]
    thresholds = operating_points(np.append(mates, false))
    return _OpenSet(
        thresholds,
        trials(mates, [searches.person[mated]], people, thresholds),
        trials(false, [searches.person[others]], people, thresholds),
    )


def _found(searches: Searches, people: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return each person's mated searches, and how many are found within each of RANKS, (P, 1 + 3)."""
    person = np.searchsorted(people, searches.person)
    rank = np.where(searches.rank == 0, np.iinfo(np.int32).max, searches.rank)
    chosen = [searches.mated, *(searches.mated & (rank <= k) for k in RANKS)]
    counts = [np.bincount(person[rows], minlength=len(people)) for rows in chosen]
    return np.stack(counts, axis=1).astype(np.float64)


def _numbers(
    found: NDArray[np.float64],
    open_set: _OpenSet,
    fpirs: Sequence[float],
    weights: NDArray[np.uint8] | None = None,
) -> NDArray[np.float64]:
    """Return the rates at RANKS, then FNIR at ``fpirs``; NaN where nothing has weight."""
    mated, *within = found.sum(axis=0) if weights is None else weights.astype(np.float64) @ found
    ranks = [share / mated if mated else np.nan for share in within]
    rates = open_set.rates(weights)
    if rates is None:
        return np.array(ranks + [np.nan] * len(fpirs))
    fpir, tpir = rates
    return np.array(ranks + [1.0 - tpir[last_within(fpir, limit)] for limit in fpirs])


def _unknown_rank(searches: Searches, rank: int) -> str | None:
    """Return why a rate at ``rank`` is unknown."""
    if not searches.mated.any():
        return "no probe's person is in the gallery"
    if rank > searches.depth:
        return f"only the best {searches.depth:,} candidates of a search are known"
    return None


def _unknown_fnir(searches: Searches, rank: int, fpir: float) -> str | None:
    """Return why FNIR is unknown at ``fpir``."""
    others, needed = int(np.count_nonzero(~searches.mated)), ceil(1 / fpir)
    if others < needed:
        return f"{others:,} non-mated searches can't resolve FPIR {written(fpir)}: {needed:,} are needed"
    return _unknown_rank(searches, rank)


def _cmc(searches: Searches) -> pa.Table:
    mated = searches.rank[searches.mated]
    top = min(MOST_RANKS, searches.depth) if len(mated) else 0
    each = np.bincount(np.minimum(mated, top + 1), minlength=top + 1)[1 : top + 1]
    return pa.table({"rank": np.arange(1, top + 1), "rate": np.cumsum(each) / max(len(mated), 1)})


def _det(open_set: _OpenSet, fpirs: Sequence[float]) -> pa.Table:
    rates = open_set.rates()
    fpir, tpir = (np.empty(0), np.empty(0)) if rates is None else rates
    kept = thinned(fpir, tpir, fpirs)
    return pa.table({"threshold": open_set.thresholds[kept], "fpir": fpir[kept], "fnir": 1.0 - tpir[kept]})
