"""Face verification: how well a similarity score tells pairs of one person from pairs of two.

Every pair is kept, since an exact ROC needs all scores: 27 bytes a pair. `result` needs about 150 bytes a
pair more, and counts all pairs again in each replicate: a million pairs take some seconds.

A pair is accepted where its score is at or above the threshold; equal scores are accepted together. A
pair that failed (one of its images gave no embedding) stays in every denominator and is never accepted,
as in NIST's treatment of failure to enrol (Grother, Ngan, Hanaoka: Ongoing FRVT Part 1: Verification): a
genuine one lowers TAR, an impostor one lowers FAR and is right in LFW's accuracy.

The intervals are a Poisson bootstrap over people: an impostor pair weighs the product of its two
people's weights, a genuine one its person's (Owen, Eckles: Bootstrapping data arrays of arbitrary order,
2012; for faces: Fogliato, Patil, Perona: Confidence intervals for error rates in 1:1 matching tasks,
2024). The price: where impostor pairs seldom share a person, as in LFW, what rests on them alone has an
interval up to sqrt(3) times too wide. A perfect number's interval has no width, as in any bootstrap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from cnnbatch.metrics import Evaluated, Value
from cnnbatch.metrics.intervals import REPLICATES, hash_weights, key_hashes, percentiles

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
"""The false accept rates at which the true accept rate is given, unless said."""
POINTS = 1000
"""The most rows of a curve's table."""

Names: TypeAlias = "Sequence[str] | pa.Array[Any] | pa.ChunkedArray[Any]"
Scores: TypeAlias = "ArrayLike | Sequence[float | None]"

_NO_FOLD = -1


@dataclass(frozen=True, slots=True)
class FacePairs:
    """Pairs of faces, one row each.

    scores: float64 (N,), NaN where the pair failed. same: bool (N,), genuine pairs. first, second:
    uint64 (N,), hashes of the people's names. folds: int16 (N,), -1 for none.
    """

    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    first: NDArray[np.uint64]
    second: NDArray[np.uint64]
    folds: NDArray[np.int16]

    def take(self, rows: NDArray[np.intp]) -> FacePairs:
        """Return some of the pairs."""
        return FacePairs(
            self.scores[rows], self.same[rows], self.first[rows], self.second[rows], self.folds[rows]
        )


def partial(
    scores: Scores, same: ArrayLike, first: Names, second: Names, folds: ArrayLike | None = None
) -> FacePairs:
    """Return pairs as rows.

    scores (N,): similarity, higher is more alike; NaN or None where the pair failed. same (N,): whether
    both faces are one person's. first, second (N,): the two people's names. folds (N,): numbers from 0
    to 32767 for the protocol of LFW; None where there are none. Raises ValueError where lengths differ, a
    score is infinite, a name is null, a fold is out of range, or ``same`` contradicts the names.
    """
    known, genuine = np.asarray(scores, np.float64), np.asarray(same, np.bool_)
    one, other = name_hashes(first), name_hashes(second)
    numbers = np.full(known.shape, _NO_FOLD) if folds is None else np.asarray(folds, np.int64)
    if {len(genuine), len(one), len(other), len(numbers)} != {len(known)}:
        raise ValueError("Expected one score, same, first, second and fold a pair; their lengths differ.")
    if np.isinf(known).any():
        raise ValueError("Expected finite scores, NaN where a pair failed; some are infinite.")
    if folds is not None and ((numbers < 0) | (numbers > np.iinfo(np.int16).max)).any():
        raise ValueError("Expected folds from 0 to 32767.")
    if wrong := int(np.count_nonzero(genuine != (one == other))):
        raise ValueError(f"`same` contradicts the two people's names in {wrong:,} of {len(known):,} pairs.")
    return FacePairs(known, genuine, one, other, numbers.astype(np.int16))


def merge(partials: Iterable[FacePairs]) -> FacePairs:
    """Return the pairs of all ``partials``, at least one, in their order."""
    parts = list(partials)
    return FacePairs(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.same for part in parts]),
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.folds for part in parts]),
    )


def result(merged: FacePairs, fars: Sequence[float] = FARS, replicates: int = REPLICATES) -> Evaluated:
    """Return AUC, EER, TAR at each of ``fars`` and, where pairs have folds, LFW's accuracy.

    All are shares from 0 to 1 but ``failed_pairs``, a count. Tables: ``roc`` (threshold, far, tar: at most
    1,000 operating points, those at ``fars`` among them; the threshold infinity accepts none), ``folds``
    (fold, threshold, accuracy, genuine, impostor, failed).

    AUC: the area under the ROC by trapezoids, the chance that a genuine pair scores above an impostor
    one, half of ties (Fawcett: An introduction to ROC analysis, 2006). EER: where FAR equals 1 - TAR
    (ISO/IEC 19795-1), on the straight line between the two neighbours on the ROC. Both take failed pairs
    for the least alike. TAR@FAR: at the least threshold whose FAR is no more than that (FRVT Part 1); None
    where fewer than 1/FAR impostor pairs can't resolve it. LFW_accuracy and LFW_standard_error (Huang,
    Ramesh, Berg, Learned-Miller: Labeled Faces in the Wild, 2007, view 2): the mean over folds, and their
    standard deviation (n - 1) by sqrt(n). Raises ValueError where one of ``fars`` is not between 0 and 1.
    """
    if not all(0 < far < 1 for far in fars):
        raise ValueError(f"Expected false accept rates between 0 and 1; got {list(fars)}.")
    people = np.unique(np.append(merged.first, merged.second))
    thresholds = operating_points(merged.scores)
    genuine, impostor = _both(merged, people, thresholds)
    numbers = _numbers(genuine, impostor, fars)
    spread = [_numbers(genuine, impostor, fars, each) for each in replicate_weights(people, replicates)]
    pairs = genuine.count + impostor.count
    wanted: list[tuple[str, int, float | None]] = [("AUC", pairs, None), ("EER", pairs, None)]
    wanted += [(f"TAR@FAR={written(far)}", genuine.count, far) for far in fars]
    metrics = {
        name: value(numbers[at], [row[at] for row in spread], count, _unknown(genuine, impostor, far))
        for at, (name, count, far) in enumerate(wanted)
    }
    failed = Value(float(np.count_nonzero(np.isnan(merged.scores))), count=pairs)
    folds = _folds(merged, people, thresholds, replicates)
    tables = {"roc": _roc(thresholds, genuine, impostor, fars), **folds.tables}
    return Evaluated({**metrics, **folds.metrics, "failed_pairs": failed}, tables)


@dataclass(frozen=True, slots=True)
class Trials:
    """Comparisons of one kind, from the highest score down, to be counted at thresholds, weighted or not.

    people: one or two (N,), the places of those whose weights make a trial's. reach: (T,), how many have a
    score at or above each of the T thresholds. Both are of the type that numpy indexes by, which is
    several times as fast as a narrower one.
    """

    people: tuple[NDArray[np.intp], ...]
    reach: NDArray[np.intp]

    @property
    def count(self) -> int:
        """How many trials there are."""
        return len(self.people[0])

    def accepted(self, weights: NDArray[np.uint8] | None = None) -> tuple[NDArray[np.int64], int]:
        """Return the weight of those accepted at each threshold, int64 (T,), and of all.

        weights: uint8 (P,), each person's weight; None counts every trial once.
        """
        if weights is None:
            return self.reach.astype(np.int64), self.count
        each = weights[self.people[0]].astype(np.uint16)  # Two weights of a byte: their product fits.
        for others in self.people[1:]:
            each *= weights[others]
        total = np.zeros(len(each) + 1, np.int64)
        np.cumsum(each, out=total[1:])
        return total[self.reach], int(total[-1])

    def shares(self, weights: NDArray[np.uint8] | None = None) -> NDArray[np.float64] | None:
        """Return the share accepted at each threshold, float64 (T,); None where nothing has weight."""
        accepted, total = self.accepted(weights)
        return accepted / total if total else None


def trials(
    scores: NDArray[np.float64],
    hashes: Sequence[NDArray[np.uint64]],
    people: NDArray[np.uint64],
    thresholds: NDArray[np.float64],
) -> Trials:
    """Return trials in order, to be weighted by the ``people`` (P,) in the order of their hashes.

    scores: (N,), a NaN is below every threshold. hashes: one or two (N,), whose weights make a trial's.
    thresholds: (T,), falling.
    """
    order = np.argsort(-scores)  # NaN goes last.
    reach = np.searchsorted(-scores[order], -thresholds, side="right")
    return Trials(tuple(np.searchsorted(people, column[order]) for column in hashes), reach)


def operating_points(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return infinity, which accepts none, then each distinct score but NaN, falling."""
    return np.append(np.inf, np.unique(scores[~np.isnan(scores)])[::-1])


def name_hashes(names: Names) -> NDArray[np.uint64]:
    """Return `key_hashes` of names, uint64 (N,), each name hashed once. Raises ValueError for a null."""
    whole = pa.array(names, pa.string())
    if whole.null_count:
        raise ValueError(f"Expected a name for everyone; {whole.null_count:,} are null.")
    encoded = whole.dictionary_encode()
    hashes = key_hashes(map(str, encoded.dictionary.to_pylist()))
    return hashes[np.asarray(encoded.indices, np.int64)]


def replicate_weights(people: NDArray[np.uint64], replicates: int) -> Iterator[NDArray[np.uint8]]:
    """Yield how often each person (P,) counts, uint8 (P,), a replicate at a time to bound memory."""
    for replicate in range(replicates):
        yield hash_weights(people, range(replicate, replicate + 1))[:, 0]


def last_within(falsely: NDArray[np.float64], limit: float) -> int:
    """Return the place of the least threshold at which ``falsely``, rising from 0, is within ``limit``."""
    return int(np.searchsorted(falsely, limit, side="right")) - 1


def thinned(
    falsely: NDArray[np.float64], truly: NDArray[np.float64], limits: Sequence[float]
) -> NDArray[np.intp]:
    """Return the places of at most `POINTS` points of a curve whose two shares rise.

    The ends and the points at ``limits`` are kept; the others are even in ``truly`` and in the logarithm
    of ``falsely``, for that is how such curves are drawn.
    """
    if len(falsely) <= POINTS:
        return np.arange(len(falsely))
    kept = [0, len(falsely) - 1, *(last_within(falsely, limit) for limit in limits)]
    steps = (POINTS - len(kept)) // 2
    even = np.searchsorted(truly, np.linspace(0, truly[-1], steps))
    if falsely[-1] > 0:
        least = falsely[last_within(falsely, 0) + 1]
        shares = np.geomspace(least, falsely[-1], steps)
        even = np.append(even, np.searchsorted(falsely, shares, side="right") - 1)
    return np.unique(np.append(even, kept))


def value(number: float, spread: Sequence[float], count: int, reason: str | None = None) -> Value:
    """Return a number with its replicates and their interval; none of them where there is a ``reason``."""
    if reason:
        return Value(None, count=count, reason=reason)
    replicates = np.array(spread, np.float64)
    low, high = percentiles(replicates)
    return Value(float(number), low, high, count, replicates=replicates)


def written(rate: float) -> str:
    """Return a rate as metrics' names have it: 1e-3."""
    return np.format_float_scientific(rate, trim="-", exp_digits=1)


def _both(
    pairs: FacePairs, people: NDArray[np.uint64], thresholds: NDArray[np.float64], fold: int | None = None
) -> tuple[Trials, Trials]:
    """Return the genuine and the impostor pairs, of one fold or of all."""
    chosen = np.ones(len(pairs.same), np.bool_) if fold is None else pairs.folds == fold
    same, different = chosen & pairs.same, chosen & ~pairs.same
    two = [pairs.first[different], pairs.second[different]]
    return (
        trials(pairs.scores[same], [pairs.first[same]], people, thresholds),
        trials(pairs.scores[different], two, people, thresholds),
    )


def _numbers(
    genuine: Trials, impostor: Trials, fars: Sequence[float], weights: NDArray[np.uint8] | None = None
) -> NDArray[np.float64]:
    """Return AUC, EER and TAR at ``fars``; all NaN where a kind of pair has no weight."""
    far, tar = impostor.shares(weights), genuine.shares(weights)
    if far is None or tar is None:
        return np.full(2 + len(fars), np.nan)
    at = [tar[last_within(far, limit)] for limit in fars]
    far, tar = np.append(far, 1.0), np.append(tar, 1.0)  # Failed pairs, below every threshold.
    return np.array([np.trapezoid(tar, far), _equal_error_rate(far, tar), *at])


def _equal_error_rate(far: NDArray[np.float64], tar: NDArray[np.float64]) -> float:
    """Return where the line through the points from (0, 0) to (1, 1) has FAR = 1 - TAR."""
    gap = far + tar - 1.0  # Rises from -1 to 1.
    after = int(np.searchsorted(gap, 0.0))
    before = after - 1
    step = -gap[before] / (gap[after] - gap[before])
    return float(far[before] + step * (far[after] - far[before]))


def _unknown(genuine: Trials, impostor: Trials, far: float | None) -> str | None:
    """Return why a number is unknown with these pairs, at ``far`` or without one."""
    if not genuine.count or not impostor.count:
        return f"no {'impostor' if genuine.count else 'genuine'} pairs"
    if far is not None and impostor.count < (needed := ceil(1 / far)):
        return f"{impostor.count:,} impostor pairs can't resolve FAR {written(far)}: {needed:,} are needed"
    return None


def _roc(
    thresholds: NDArray[np.float64], genuine: Trials, impostor: Trials, fars: Sequence[float]
) -> pa.Table:
    far, tar = impostor.shares(), genuine.shares()
    if far is None or tar is None:
        thresholds = far = tar = np.empty(0)
    kept = thinned(far, tar, fars)
    return pa.table({"threshold": thresholds[kept], "far": far[kept], "tar": tar[kept]})


def _folds(
    pairs: FacePairs, people: NDArray[np.uint64], thresholds: NDArray[np.float64], replicates: int
) -> Evaluated:
    """Return LFW's numbers; nothing where no pair has a fold."""
    numbers = np.unique(pairs.folds)
    count = len(pairs.folds)
    if not np.any(numbers != _NO_FOLD):
        return Evaluated({})
    if reason := _unfit(pairs.folds, numbers):
        unknown = Value(None, count=count, reason=reason)
        return Evaluated({"LFW_accuracy": unknown, "LFW_standard_error": unknown})
    folds = [_both(pairs, people, thresholds, int(number)) for number in numbers]
    best, accuracies = _protocol(folds)
    spread = [float(_protocol(folds, each)[1].mean()) for each in replicate_weights(people, replicates)]
    metrics = {
        "LFW_accuracy": value(float(accuracies.mean()), spread, count),
        "LFW_standard_error": Value(float(accuracies.std(ddof=1)) / sqrt(len(folds)), count=len(folds)),
    }
    table = {
        "fold": numbers,
        "threshold": thresholds[best],
        "accuracy": accuracies,
        "genuine": [genuine.count for genuine, _ in folds],
        "impostor": [impostor.count for _, impostor in folds],
        "failed": [int(np.isnan(pairs.scores[pairs.folds == number]).sum()) for number in numbers],
    }
    return Evaluated(metrics, {"folds": pa.table(table)})


def _unfit(folds: NDArray[np.int16], numbers: NDArray[np.int16]) -> str | None:
    """Return why the protocol can't be followed."""
    if without := int(np.count_nonzero(folds == _NO_FOLD)):
        return f"{without:,} of {len(folds):,} pairs have no fold"
    return "only one fold" if len(numbers) < 2 else None


def _protocol(
    folds: Sequence[tuple[Trials, Trials]], weights: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return each fold's threshold (its place) and accuracy, NaN where the fold has no weight.

    The threshold is the one with most right pairs in the other folds; of several the highest, which is
    what facenet's and InsightFace's argmax over a grid of distances takes, too.
    """
    right, total = [], []
    for genuine, impostor in folds:
        rightly, genuine_weight = genuine.accepted(weights)
        wrongly, impostor_weight = impostor.accepted(weights)
        right.append(rightly + (impostor_weight - wrongly))
        total.append(genuine_weight + impostor_weight)
    every = np.sum(right, axis=0)
    best = np.array([np.argmax(every - own) for own in right])
    found = np.array([own[at] for own, at in zip(right, best, strict=True)])
    return best, np.divide(found, total, out=np.full(len(folds), np.nan), where=np.array(total) > 0)
