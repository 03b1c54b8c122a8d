"""Average precision and recall of one class, from all its detections, and again in each replicate.

Precision is highest where a right detection stands, so only those places are computed: as many as
there are truths, not as there are detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Value
from cnnbatch.metrics.by_class import MergedRows
from cnnbatch.metrics.intervals import FEW_REPLICATES, REPLICATES, hash_weights, percentiles
from cnnbatch.metrics.iou_types import IouType, Stat
from cnnbatch.metrics.matching import THRESHOLDS

_DETECTION: dict[str, pa.DataType] = {
    "label": pa.string(),
    "score": pa.float32(),
    "image": pa.int64(),  # Orders equal scores.
    "hash": pa.uint64(),  # The image's key, for its weight in each replicate.
    "place": pa.uint8(),  # Among the detections of its image and class.
    "matched": pa.uint64(),  # A bit for each threshold and range of areas.
    "ignored": pa.uint64(),
}
_TRUTH: dict[str, pa.DataType] = {"label": pa.string(), "hash": pa.uint64(), "counted": pa.uint64()}
_CURVE: dict[str, pa.DataType] = {
    "label": pa.string(),
    "iou": pa.float64(),
    "recall": pa.float64(),
    "precision": pa.float64(),
    "score": pa.float64(),
}
DETECTIONS = pa.schema(_DETECTION)
"""A row a detection."""
TRUTHS = pa.schema(_TRUTH)
"""A row a truth; ``counted`` has a bit for each range of areas."""
CURVES = pa.schema(_CURVE)
"""Precision at COCO's 101 recalls, and the score there."""

RECALLS = np.linspace(0.0, 1.0, 101)
MANY = 1_000_000
"""Detections from which on the bootstrap has fewer replicates."""

_DRAWN = (0, 5)  # The thresholds 0.5 and 0.75.
_CELLS = 16_000_000  # Rows times replicates at a time.
_WIDE = 10_000_000  # Right detections from which on 100 times their weight might not fit into 32 bits.


class Ranking(NamedTuple):
    """The rows of one class."""

    label: str
    detections: pa.Table
    truths: pa.Table


def rankings(merged: MergedRows) -> Iterator[Ranking]:
    """Yield the rows of each class that has a truth, read as they are asked for."""
    for label in merged.truths.labels():
        yield Ranking(label, merged.detections.read(label), merged.truths.read(label))


@dataclass(frozen=True, slots=True)
class Ranked:
    """One class's numbers, in the order of ``IouType.stats``; NaN where no truth counts.

    ``replicates`` is float64 (R, stats); ``counts`` the truths behind each number; ``operating`` the score
    threshold of the best F1 at IoU 0.5, with the precision, recall and F1 there.
    """

    label: str
    detections: int
    counts: list[int]
    values: NDArray[np.float64]
    replicates: NDArray[np.float64]
    operating: dict[str, float | None]
    curves: pa.Table


def rank(iou_type: IouType, replicates: int, rows: Ranking) -> Ranked:
    """Rank one class's detections over all images (pycocotools, ``COCOeval.accumulate``)."""
    scored = _Scored(iou_type, rows.detections)
    counted = _unpack(rows.truths["counted"], len(iou_type.ranges))
    counts = counted.sum(axis=0)
    values = np.array([_value(scored, stat, int(counts[stat.area])) for stat in iou_type.stats])
    blocks = _replicates(iou_type, scored, counted, rows.truths, replicates)
    return Ranked(
        label=rows.label,
        detections=len(scored.score),
        counts=[int(counts[stat.area]) for stat in iou_type.stats],
        values=values,
        replicates=np.concatenate(blocks) if blocks else np.zeros((0, len(iou_type.stats))),
        operating=_operating(scored, int(counts[0])),
        curves=_curves(rows.label, scored, int(counts[0])),
    )


class _Scored:
    """The detections of a class, best first; equal scores by image, then by place."""

    def __init__(self, iou_type: IouType, rows: pa.Table) -> None:
        score, image, place = (_numpy(rows, name) for name in ("score", "image", "place"))
        order = np.lexsort((place, image, -score.astype(np.float64)))
        shape = (len(order), len(THRESHOLDS), len(iou_type.ranges))
        cells = shape[1] * shape[2]
        self.iou_type = iou_type
        self.score = score[order].astype(np.float64)
        self.place = place[order]
        self.hash = _numpy(rows, "hash")[order]
        matched = _unpack(rows["matched"], cells)[order].reshape(shape)
        self.ignored = _unpack(rows["ignored"], cells)[order].reshape(shape)
        self.right = matched & ~self.ignored

    def counted_right(self, threshold: int, area: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of right detections, and how many count up to and with each of them."""
        rows = np.flatnonzero(self.right[:, threshold, area])
        ignored = np.flatnonzero(self.ignored[:, threshold, area])
        return rows, rows + 1 - np.searchsorted(ignored, rows)


def _value(scored: _Scored, stat: Stat, truths: int) -> float:
    if not truths:
        return np.nan
    thresholds = range(len(THRESHOLDS)) if stat.threshold is None else [stat.threshold]
    one = _recall if stat.recall else _average_precision
    return float(np.mean([one(scored, stat, threshold, truths) for threshold in thresholds]))


def _recall(scored: _Scored, stat: Stat, threshold: int, truths: int) -> float:
    right = scored.right[:, threshold, stat.area] & (scored.place < scored.iou_type.most[stat.most])
    return float(right.sum() / truths)


def _average_precision(scored: _Scored, stat: Stat, threshold: int, truths: int) -> float:
    return float(_precisions(scored, threshold, stat.area, truths)[0].mean())


def _precisions(
    scored: _Scored, threshold: int, area: int, truths: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the greatest precision at or beyond each of the 101 recalls, and the score there."""
    rows, counted = scored.counted_right(threshold, area)
    right = np.arange(1, len(rows) + 1)
    precision = np.maximum.accumulate((right / (counted + np.spacing(1)))[::-1])[::-1]
    at = np.searchsorted(right / truths, RECALLS, side="left")
    known = at < len(rows)
    values, scores = np.zeros((2, len(RECALLS)))
    values[known] = precision[at[known]]
    scores[known] = scored.score[rows[at[known]]]
    if len(scored.score):
        scores[0] = scored.score[0]  # The first detection reaches the recall 0, right or not.
    return values, scores


def _replicates(
    iou_type: IouType, scored: _Scored, counted: NDArray[np.bool_], truths: pa.Table, replicates: int
) -> list[NDArray[np.float64]]:
    """Return the numbers in each replicate, (r, stats), some replicates at a time."""
    found = []
    for weights, of_truths in weighted(scored.hash, _numpy(truths, "hash"), replicates):
        totals = np.stack([of_truths[chosen].sum(axis=0, dtype=np.int64) for chosen in counted.T])
        found.append(_weighted(iou_type, scored, weights, totals))
    return found


def weighted(
    detections: NDArray[np.uint64], truths: NDArray[np.uint64], replicates: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield the weights of detections and of truths by the hashes of their images, (n, r) and (m, r).

    All replicates together would not fit into memory, so some come at a time.
    """
    some = max(1, _CELLS // max(1, len(detections), len(truths)))
    hashes = [np.unique(one, return_inverse=True) for one in (detections, truths)]
    for first in range(0, replicates, some):
        block = range(first, min(first + some, replicates))
        of_detections, of_truths = (hash_weights(images, block)[image] for images, image in hashes)
        yield of_detections, of_truths


def _weighted(
    iou_type: IouType, scored: _Scored, weights: NDArray[np.uint8], totals: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the numbers with each image counted ``weights`` (n, r) times; ``totals`` (A, r): the truths."""
    areas = [_precisions_of_area(scored, weights, area, total) for area, total in enumerate(totals)]
    values = []
    for stat in iou_type.stats:
        total, found = totals[stat.area], areas[stat.area]
        if stat.recall:
            chosen = _recalls(scored, stat, weights, total)
        else:
            chosen = found.mean(axis=0) if stat.threshold is None else found[stat.threshold]
        values.append(np.where(total > 0, chosen, np.nan))
    return np.stack(values, axis=1)


def _precisions_of_area(
    scored: _Scored, weights: NDArray[np.uint8], area: int, total: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the average precision at each threshold, (T, r).

    What is ignored differs little between thresholds: the sums are taken once, and then what changes.
    """
    right, ignored = scored.right[:, :, area], scored.ignored[:, :, area]
    sums = np.cumsum(weights * ~ignored[:, :1], axis=0, dtype=np.int32)
    found = []
    for threshold in range(len(THRESHOLDS)):
        rows, changed = np.flatnonzero(right[:, threshold]), ignored[:, threshold] != ignored[:, 0]
        signs = np.where(ignored[changed, threshold], -1, 1).astype(np.int32)
        change = np.cumsum(weights[changed] * signs[:, None], axis=0)
        before = np.searchsorted(np.flatnonzero(changed), rows, side="right")
        counted = sums[rows] + np.concatenate([np.zeros_like(sums[:1]), change])[before]
        found.append(interpolated(*envelope(weights[rows], counted), total, RECALLS))
    return np.stack(found)


def envelope(
    weights: NDArray[np.uint8], counted: NDArray[np.int32]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return how many are right up to each of g right detections, and the greatest precision from there on.

    All are (g, r); ``counted`` is the weight of all detections that count, up to and with each of the g.
    """
    right = np.cumsum(weights, axis=0, dtype=np.int32 if len(weights) < _WIDE else np.int64)
    return right, np.maximum.accumulate((right / np.maximum(counted, 1))[::-1])[::-1]


def interpolated(
    right: NDArray[Any],
    greatest: NDArray[np.float64],
    totals: NDArray[np.int64],
    recalls: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the mean over ``recalls``, 0 to 1 in equal steps, of the greatest precision there, (r,).

    ``right`` and ``greatest`` are `envelope`'s, ``totals`` (r,) the truths.
    """
    passed = reached(right, totals, recalls)
    passed[1:] -= passed[:-1].copy()
    mean: NDArray[np.float64] = np.einsum("ij,ij->j", greatest, passed, dtype=np.float64) / len(recalls)
    return mean


def reached(right: NDArray[Any], totals: NDArray[np.int64], recalls: NDArray[np.float64]) -> NDArray[Any]:
    """Return how many ``recalls`` are at most the float ``right / totals``, without a search.

    Some of ``recalls`` (`numpy.linspace`'s) lie above the fraction that they stand for, so that a recall of
    just this fraction does not reach them: pycocotools' AP depends on it.
    """
    steps = len(recalls) - 1
    late = recalls > np.arange(steps + 1) / steps
    totals = np.maximum(totals, 1).astype(right.dtype)
    # A product that is a whole number must not be rounded to below it; any other is 1 / totals away from it.
    below = (right * (steps * (1 + 1e-12) / totals)).astype(right.dtype)
    passed: NDArray[Any] = below + 1 - ((below * totals == steps * right) & late[below])
    return passed


def mean_over_classes(
    values: Sequence[float], replicates: Sequence[NDArray[np.float64]], count: int, lacking: str
) -> Value:
    """Return the mean over the classes that have truths, whose value is not NaN, with its interval.

    ``replicates`` are (R,) a class; ``lacking`` says why there is no value where no class has truths.

    An image that is drawn twice raises the interpolated precision, so the replicates' percentiles can all
    lie above the value. They are shifted by the bootstrap's estimate of bias, the replicates' mean less
    the value (Efron, Tibshirani: An introduction to the bootstrap, 1993, chapter 10), and kept in [0, 1].
    """
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return Value(None, reason=lacking)
    value, stacked = float(np.mean(known)), np.stack(replicates)
    there = (~np.isnan(stacked)).sum(axis=0)
    means = np.divide(np.nansum(stacked, axis=0), there, out=np.full(there.shape, np.nan), where=there > 0)
    low, high = percentiles(means)
    if low is None or high is None:
        return Value(value, count=count, replicates=means)
    bias = float(np.nanmean(means)) - value
    # A few replicates far away can draw their mean out of the percentiles, and the value with it.
    low, high = min(value, max(0.0, low - bias)), max(value, min(1.0, high - bias))
    return Value(value, low, high, count, replicates=means)


def count_replicates(detections: int) -> int:
    """Return how many replicates the bootstrap has for so many detections."""
    return FEW_REPLICATES if detections > MANY else REPLICATES


def _recalls(
    scored: _Scored, stat: Stat, weights: NDArray[np.uint8], total: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the recall at one threshold, or its mean over all, (r,)."""
    thresholds = slice(None) if stat.threshold is None else [stat.threshold]
    right = scored.right[:, thresholds, stat.area] & (scored.place < scored.iou_type.most[stat.most])[:, None]
    times = right.sum(axis=1)
    rows = np.flatnonzero(times)
    sums = np.einsum("i,ij->j", times[rows], weights[rows], dtype=np.int64)
    recalls: NDArray[np.float64] = sums / np.maximum(total * right.shape[1], 1)
    return recalls


def _operating(scored: _Scored, truths: int) -> dict[str, float | None]:
    """Return the score threshold of the best F1 at IoU 0.5; equal scores are taken or left together."""
    counted = ~scored.ignored[:, 0, 0]
    score, right = scored.score[counted], np.cumsum(scored.right[counted, 0, 0])
    if not len(score) or not truths:
        return {"threshold": None, "precision": None, "recall": None, "f1": None}
    ends = np.flatnonzero(np.diff(score, append=-np.inf))
    f1 = 2 * right[ends] / (truths + ends + 1)
    best = ends[int(f1.argmax())]
    return {
        "threshold": float(score[best]),
        "precision": float(right[best] / (best + 1)),
        "recall": float(right[best] / truths),
        "f1": float(f1.max()),
    }


def _curves(label: str, scored: _Scored, truths: int) -> pa.Table:
    tables = [CURVES.empty_table()]
    for threshold in _DRAWN if truths else ():
        precision, score = _precisions(scored, threshold, 0, truths)
        iou = np.full(len(RECALLS), THRESHOLDS[threshold])
        columns = [pa.array([label] * len(RECALLS)), *map(pa.array, (iou, RECALLS, precision, score))]
        tables.append(pa.table(columns, schema=CURVES))
    return pa.concat_tables(tables)


def _numpy(rows: pa.Table, name: str) -> NDArray[Any]:
    column: NDArray[Any] = rows[name].to_numpy()
    return column


def _unpack(column: Any, bits: int) -> NDArray[np.bool_]:
    """Return the lowest bits of each number, (n, bits)."""
    raw = np.ascontiguousarray(column.to_numpy()).astype("<u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(raw, axis=1, count=bits, bitorder="little").view(np.bool_)
