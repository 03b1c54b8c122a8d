"""How well images are classified: accuracy, precision, recall and F1, log loss, calibration.

Only sums are kept: three numbers a class and replicate, and the confusion matrix's cells that are not
zero. The last dimension of every array of sums has the images as they are first, then the bootstrap's
replicates, so that one formula serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import inf
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, Value
from cnnbatch.metrics.intervals import REPLICATES, hash_weights, key_hashes, percentiles, wilson
from cnnbatch.metrics.label_rows import SCHEMA, floats, numbered, table, with_nulls
from cnnbatch.metrics.values import ratio
from cnnbatch.types import Map

BINS = 15
"""Bins of the calibration, of equal width; as many as in Guo et al. (2017), section 5."""

NO_IMAGES = "no image has ground truth"
NO_SCORES = "no image has a score"
SHORT_TOP = "`top` has fewer than five classes"
NO_TRUE_SCORES = "no `true_score`, and no `probabilities` with the model's class names"

_WEIGHTS = 1 << 18  # Of images in replicates, in memory at once; more where there are more images.
_EDGES = np.linspace(0, 1, BINS + 1)


@dataclass(frozen=True, slots=True, eq=False)
class ClassificationPartial:
    """What some images contribute, for C classes, R replicates and B bins.

    names: the C classes that are in truth or predictions, sorted. classes: int64 (C, 3, 1 + R), of each
    class the images that are right, those in the truth, those predicted; its 8 · 3 · (1 + R) · C bytes are
    most of the partial. cells: int64 (P,), sorted, the cells of the confusion matrix that are not zero,
    truth · (C + 1) + prediction, which is C for failed images; cell_counts: int64 (P,). right_in_5: images
    whose truth is among the best five; short: images whose ``top`` can't tell. loss: float64 (2, 1 + R),
    the sum over the images whose loss is known and their number. bins: float64 (B, 3, 1 + R), of each bin
    the images, those that are right, the sum of their scores. images: a row an image (`SCHEMA`), which
    merging leaves out.
    """

    names: list[str]
    classes: NDArray[np.int64]
    cells: NDArray[np.int64]
    cell_counts: NDArray[np.int64]
    right_in_5: int
    short: int
    loss: NDArray[np.float64]
    bins: NDArray[np.float64]
    images: pa.Table


def partial(
    predictions: pa.Table, truth: pa.Table, classes: Sequence[str] | None = None
) -> ClassificationPartial:
    """Count some images.

    ``predictions`` has ``key``, ``error`` and ``label``; ``score``, ``top``, ``true_score`` and
    ``probabilities``, as in `cnnbatch.tasks.classify`, may be absent. ``truth`` has ``label``, in the same
    order and of the model's names. ``classes`` are all names of the model, in the order of
    ``probabilities``: without them these are not read, and a ``top`` of fewer than five can't be all of a
    small model's classes.

    An image failed where it has an ``error`` or no ``label``.

    Raises:
        ValueError: the tables differ in length, a truth is null, or ``probabilities`` are not one a class.
    """
    return _counted(table(predictions, truth, classes))


def merge(partials: Iterable[ClassificationPartial]) -> ClassificationPartial:
    """Add up partials, each as it comes, by the names of their classes; ``images`` is left empty."""
    return reduce(_sum, partials, _counted(SCHEMA.empty_table()))


def result(merged: ClassificationPartial) -> Evaluated:
    """Return the numbers of all images, and the tables ``classes``, ``confusion`` and ``calibration``.

    ``top1``, ``top5``: the share of images whose truth is the best, is among the best five. A failed image
    is a miss. The intervals are Wilson's; all others are the basic bootstrap's (`_basic`).

    ``precision``, ``recall``, ``F1``: scikit-learn's ``precision_recall_fscore_support`` with
    ``zero_division=0`` and all classes in truth or predictions as ``labels``: a failed image counts as
    predicted to be of a further class that is in no mean, so it lowers the recall alone. ``_macro`` is
    the mean over the classes, of a replicate over those that it drew, ``_weighted`` by their truths.

    ``log_loss``: the mean of -ln p of the true class, p clipped to float32's [eps, 1 - eps] as
    scikit-learn does, over the images where p is known: not failed ones.

    ``ECE``: the expected calibration error of the best score, Guo, Pleiss, Sun, Weinberger: On
    calibration of modern neural networks (2017), eq. 3, without failed images. Chance gaps add up: it is
    biased upwards, and where few images make that most of it, the interval is still too high.

    ``classes`` has null for a precision or recall of 0 / 0. ``confusion`` has the cells that are not zero;
    ``predicted`` is null where ``failed``.
    """
    right, true, _ = merged.classes[..., 0].sum(axis=0).tolist()
    measures = _measures(merged.classes)
    metrics = {
        "top1": _share(right, true),
        "top5": Value(None, reason=SHORT_TOP) if merged.short else _share(merged.right_in_5, true),
        **{name: _value(each, true, NO_IMAGES) for name, each in measures.items()},
        **_of_scores(merged),
    }
    tables = {"classes": _classes(merged), "confusion": _confusion(merged), "calibration": _bins(merged)}
    return Evaluated(metrics, tables)


class ClassificationMetric(Metric):
    """Labels judged by labels."""

    answer = "label"
    less_is_better = ("log_loss", "ECE")

    def applies(self, schemas: Schemas) -> bool:
        """Say whether both are labels; a task from elsewhere may mean something else by that column."""
        return super().applies(schemas) and _is(schemas.predictions, "label", pa.types.is_string)

    def columns(self, predictions: pa.Schema) -> list[str]:
        """Leave the probabilities where they are, unless nothing else tells the true class's."""
        scored = [name for name, kind in _SCORED.items() if _is(predictions, name, kind)]
        return ["label", *scored, "true_score" if "true_score" in predictions.names else "probabilities"]

    def partial(self, piece: Piece) -> ClassificationPartial:
        """Count some images."""
        return partial(piece.predictions, piece.truth, piece.classes)

    def merge(self, partials: Sequence[ClassificationPartial]) -> ClassificationPartial:
        """Add up partials."""
        return merge(partials)

    def result(self, merged: ClassificationPartial, apply: Map) -> Evaluated:
        """Return the numbers of all images."""
        return result(merged)

    def images(self, partial: ClassificationPartial) -> pa.Table:
        """Return a row an image (`SCHEMA`)."""
        return partial.images


_SCORED: dict[str, Callable[[pa.DataType], bool]] = {
    "score": pa.types.is_floating,
    "top": lambda kind: pa.types.is_list(kind) and pa.types.is_struct(kind.value_type),
}


def _is(schema: pa.Schema, name: str, kind: Callable[[pa.DataType], bool]) -> bool:
    return name in schema.names and kind(schema.field(name).type)


def _counted(images: pa.Table) -> ClassificationPartial:
    columns: Any = (images[name].to_pylist() for name in ("key", "label", "predicted"))
    keys, labels, predicted = columns
    names = sorted({*labels, *predicted} - {None})
    true, said = numbered(labels, names), numbered(predicted, names)
    cells, cell_counts = np.unique(true * (len(names) + 1) + said, return_counts=True)
    right, loss, score = true == said, floats(images["loss"]), floats(images["score"])
    bins = np.where(np.isnan(score), BINS, np.searchsorted(_EDGES[1:-1], score))
    classes = np.empty((len(names), 3, 1 + REPLICATES), np.int64)
    losses, binned = np.empty((2, 1 + REPLICATES)), np.empty((BINS, 3, 1 + REPLICATES))
    for at, weights in _weights(keys):
        right_weights, score_weights = weights * right[:, None], weights * score[:, None]
        classes[:, 0, at] = _sums(true, right_weights, len(names))
        classes[:, 1, at] = _sums(true, weights, len(names))
        classes[:, 2, at] = _sums(said, weights, len(names))
        losses[:, at] = np.nan_to_num(loss) @ weights, ~np.isnan(loss) @ weights
        binned[:, 0, at] = _sums(bins, weights, BINS)
        binned[:, 1, at] = _sums(bins, right_weights, BINS)
        binned[:, 2, at] = _sums(bins, score_weights, BINS)
    hits = images["right_in_5"]
    return ClassificationPartial(
        names=names,
        classes=classes,
        cells=cells,
        cell_counts=cell_counts,
        right_in_5=pc.sum(hits).as_py() or 0,
        short=hits.null_count,
        loss=losses,
        bins=binned,
        images=images,
    )


def _weights(keys: Sequence[str]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield how often each image counts, (N, W): once, then in W replicates at a time to bound the memory."""
    hashes = key_hashes(keys)
    yield slice(0, 1), np.ones((len(keys), 1))
    width = max(1, _WEIGHTS // max(1, len(keys)))
    for first in range(0, REPLICATES, width):
        some = range(first, min(first + width, REPLICATES))
        yield slice(1 + some.start, 1 + some.stop), hash_weights(hashes, some).astype(np.float64)


def _sums(groups: NDArray[np.int64], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the sums of each group's values (N, W), (size, W); groups from ``size`` on are left out."""
    width = values.shape[1]
    at = groups[:, None] * width + np.arange(width)
    sums = np.bincount(at.ravel(), values.ravel(), size * width)[: size * width]
    return np.asarray(sums, np.float64).reshape(size, width)


def _sum(one: ClassificationPartial, other: ClassificationPartial) -> ClassificationPartial:
    one = _widened(one, sorted({*one.names, *other.names}))
    places = numbered(other.names, one.names)
    classes = one.classes.copy()
    classes[places] += other.classes
    cells, counts = _united(one, _renumbered(other.cells, places, len(one.names)), other.cell_counts)
    return ClassificationPartial(
        names=one.names,
        classes=classes,
        cells=cells,
        cell_counts=counts,
        right_in_5=one.right_in_5 + other.right_in_5,
        short=one.short + other.short,
        loss=one.loss + other.loss,
        bins=one.bins + other.bins,
        images=SCHEMA.empty_table(),
    )


def _widened(one: ClassificationPartial, names: list[str]) -> ClassificationPartial:
    """Return ``one`` with further classes."""
    if one.names == names:
        return one
    places = numbered(one.names, names)
    classes = np.zeros((len(names), *one.classes.shape[1:]), np.int64)
    classes[places] = one.classes
    return replace(one, names=names, classes=classes, cells=_renumbered(one.cells, places, len(names)))


def _renumbered(cells: NDArray[np.int64], places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return cells of classes that are now at ``places`` (C,) among ``size``; sorted, since these are."""
    true, said = np.divmod(cells, len(places) + 1)
    renumbered: NDArray[np.int64] = places[true] * (size + 1) + np.append(places, size)[said]
    return renumbered


def _united(
    one: ClassificationPartial, cells: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add some cells to those of ``one`` without sorting these again, which may be a million."""
    at = np.searchsorted(one.cells, cells)
    new = np.append(one.cells, -1)[at] != cells
    sums = one.cell_counts.copy()
    sums[at[~new]] += counts[~new]
    return np.insert(one.cells, at[new], cells[new]), np.insert(sums, at[new], counts[new])


def _measures(classes: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return the means over the classes, each (1 + R,)."""
    there = classes[:, 1] + classes[:, 2] > 0  # [C, 1 + R]
    each = {name: np.nan_to_num(values) for name, values in _by_class(classes).items()}
    macro = {f"{name}_macro": _mean(values, there) for name, values in each.items()}
    return macro | {f"{name}_weighted": _mean(values, classes[:, 1]) for name, values in each.items()}


def _by_class(classes: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return precision, recall and F1 of each class, each (C, 1 + R)."""
    right, true, said = classes.swapaxes(0, 1)
    return {
        "precision": ratio(right, said),
        "recall": ratio(right, true),
        "F1": ratio(2 * right, true + said),
    }


def _of_scores(merged: ClassificationPartial) -> dict[str, Value]:
    """Return the numbers that stand on the scores of images which did not fail."""
    images, right, scores = merged.bins.swapaxes(0, 1)  # each [B, 1 + R]
    counts = images.sum(axis=0)
    unknown = NO_TRUE_SCORES if counts[0] else NO_SCORES
    gaps = ratio(np.abs(right - scores).sum(axis=0), counts)
    return {
        "log_loss": _value(ratio(*merged.loss), int(merged.loss[1, 0]), unknown, most=inf),
        "ECE": _value(gaps, int(counts[0]), NO_SCORES),
    }


def _classes(merged: ClassificationPartial) -> pa.Table:
    right, true, said = merged.classes[..., 0].T
    numbers = {name: with_nulls(each[:, 0]) for name, each in _by_class(merged.classes[..., :1]).items()}
    names = pa.array(merged.names, pa.string())
    return pa.table({"label": names, "truths": true, "predicted": said, "right": right, **numbers})


def _confusion(merged: ClassificationPartial) -> pa.Table:
    names: Any = pa.array(merged.names, pa.string())
    true, said = np.divmod(merged.cells, len(names) + 1)
    failed = said == len(names)
    return pa.table(
        {
            "truth": names.take(pa.array(true)),
            "predicted": names.take(pa.array(said, mask=failed)),
            "failed": failed,
            "count": merged.cell_counts,
        }
    )


def _bins(merged: ClassificationPartial) -> pa.Table:
    images, right, scores = merged.bins[..., 0].T
    return pa.table(
        {
            "low": pa.array(_EDGES[:-1]),
            "high": pa.array(_EDGES[1:]),
            "count": pa.array(images.astype(np.int64)),
            "confidence": with_nulls(ratio(scores, images)),
            "accuracy": with_nulls(ratio(right, images)),
        }
    )


def _share(successes: int, count: int) -> Value:
    if not count:
        return Value(None, reason=NO_IMAGES)
    low, high = wilson(successes, count)
    return Value(successes / count, low, high, count)


def _value(numbers: NDArray[np.float64], count: int, unknown: str, most: float = 1.0) -> Value:
    if not count:
        return Value(None, reason=unknown)
    return Value(float(numbers[0]), *_basic(numbers, most), count, replicates=numbers[1:])


def _basic(numbers: NDArray[np.float64], most: float) -> tuple[float | None, float | None]:
    """Return the basic bootstrap's interval within 0 and ``most``: the percentiles, mirrored at the value.

    Davison, Hinkley: Bootstrap methods and their application (1997), section 5.2. Resampling a few images
    a class or bin repeats the bias that these numbers have: mirrored, it is taken off instead of added.
    """
    low, high = percentiles(numbers[1:])
    if low is None or high is None:
        return None, None
    first, last = np.clip((2 * numbers[0] - high, 2 * numbers[0] - low), 0, most)
    return float(first), float(last)


def _mean(values: NDArray[np.float64], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Return the weighted mean over the first dimension."""
    return ratio((values * weights).sum(axis=0), weights.sum(axis=0))
