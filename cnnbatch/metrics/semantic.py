"""Semantic segmentation from maps of class numbers: accuracies and IoU (Long et al. 2015), boundary F1.

Only sums are kept, never a map: three numbers a class and replicate. Every array of sums has the images
as they are first, then the bootstrap's replicates, so that one formula serves both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from math import isqrt
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Value
from cnnbatch.metrics.intervals import REPLICATES, poisson_weights
from cnnbatch.metrics.values import added, bootstrapped, ratio

OTHER_SIZE = "the prediction has another size than the truth"
UNKNOWN_CLASS = "the truth has a number that is neither a class nor ignored"
ALL_IGNORED = "every pixel of the truth is ignored"


@dataclass(frozen=True, slots=True, eq=False)
class SemanticPartial:
    """What some images contribute, for C classes and R replicates, the images as they are first.

    ``pixels`` is int64 (1 + R, 3, C): of each class those that are right, those in the truth, those
    predicted. ``confusion`` is int64 (C, C + 1), truth by prediction; its last column is no class.
    ``boundary`` float64 and ``images`` int64 (1 + R,) are the sum of the images' boundary F1 and their
    number; ``class_boundary`` and ``class_images`` (C,) are the same of each class, over the images whose
    truth has it. Failed images are among ``images``, ``excluded`` ones, by their reason, are not.
    """

    pixels: NDArray[np.int64]
    confusion: NDArray[np.int64]
    boundary: NDArray[np.float64]
    images: NDArray[np.int64]
    class_boundary: NDArray[np.float64]
    class_images: NDArray[np.int64]
    failed: int
    excluded: Counter[str]


def partial(
    keys: Sequence[str],
    predicted: Iterable[NDArray[Any] | None],
    truth: Iterable[NDArray[Any]],
    classes: int,
    ignore: Collection[int] = (),
) -> SemanticPartial:
    """Count some images: maps (H, W) of class numbers 0 to ``classes`` - 1, of any integer type.

    Pixels whose truth is in ``ignore`` are left out. What is predicted as an ignored number or as none of
    the classes is a miss; so are all pixels of a failed image, whose prediction is None. An image is
    excluded where the two sizes differ, or where its truth has other numbers or nothing to count.

    Raises:
        ValueError: ``keys``, ``predicted`` and ``truth`` differ in length, or a truth is not (H, W).
        TypeError: a truth is not of integers.
    """
    ignored = np.array(sorted(ignore), np.int64)
    weights = np.insert(poisson_weights(keys).astype(np.int64), 0, 1, axis=1)  # [N, 1 + R]
    images = zip(weights, predicted, truth, strict=True)
    return merge(chain([_nothing(classes)], (_of_image(*image, classes, ignored) for image in images)))


def merge(partials: Iterable[SemanticPartial]) -> SemanticPartial:
    """Add up one or more partials, each as it comes.

    Raises:
        ValueError: they are of different numbers of classes.
    """
    return reduce(_sum, partials)


def result(merged: SemanticPartial) -> Evaluated:
    """Return the numbers of all images, and the tables ``classes``, ``confusion`` and ``outcomes``.

    ``pixel_accuracy``, ``mean_accuracy``, ``mIoU`` and ``frequency_weighted_IoU`` are those of Long,
    Shelhamer, Darrell: Fully convolutional networks for semantic segmentation (2015), section 5, and its
    ``score.py``: the mean IoU leaves out a class that is in neither truth nor prediction (torchvision's
    ``ConfusionMatrix`` gives NaN for it) and counts 0 for one that is only predicted; the mean accuracy
    leaves out both. ``boundary_F1`` is the mean of `boundary_f1` over the classes of an image's truth,
    then over the images (Badrinarayanan, Kendall, Cipolla: SegNet, 2017, section 3.3); what is predicted
    at ignored pixels is of no class there, so that a boundary among them is seen where they end.

    Each stands on the number of images. In ``confusion``, ``predicted`` is null for pixels of no class.
    """
    measures = {**_measures(merged.pixels), "boundary_F1": ratio(merged.boundary, merged.images)}
    tables = {"classes": _classes(merged), "confusion": _confusion(merged), "outcomes": _outcomes(merged)}
    count = int(merged.images[0])
    return Evaluated({name: _value(each, count) for name, each in measures.items()}, tables)


def boundary_f1(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Return the boundary F1 of each class in an image, (C,), NaN where the truth (H, W) has none of it.

    Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation? (2013): the
    precision is the share of the predicted boundary's pixels that lie nearer than the tolerance, 0.75 %
    of the image's diagonal, to a pixel of the true boundary; the recall is the converse. A boundary's
    pixels are those of the class that have one of their four neighbours outside of it; outside of the
    image is outside, so that every class has a boundary. Numbers other than 0 to C - 1 are no class.
    """
    height, width = truth.shape
    square = (9 * (height**2 + width**2) - 1) // 160_000  # The greatest d² with d < 0.0075 diagonals.
    margin = isqrt(square) + 1
    said, true = (_boundary(each, classes, margin) for each in (predicted, truth))
    rows, columns = height + 2 * margin, width + 2 * margin

    def share(some: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        near = some[_near(some, others, columns, square)]
        hits, all_ = (np.bincount(each // (rows * columns), minlength=classes) for each in (near, some))
        return ratio(hits, all_)

    precision, recall = share(said, true), share(true, said)
    matched = recall > 0  # Then the precision is above 0, too.
    f1 = np.divide(2 * precision * recall, precision + recall, out=np.zeros(classes), where=matched)
    return np.where(np.isnan(recall), np.nan, f1)


def _boundary(numbers: NDArray[Any], classes: int, margin: int) -> NDArray[np.int64]:
    """Return the boundary pixels of all classes, sorted: class · size of the padded map + place in it.

    The ``margin`` keeps shorter steps from ending in another row or class.
    """
    padded = np.pad(numbers.astype(np.int64), margin, constant_values=-1)
    edge = np.zeros(padded.shape, np.bool_)
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        edge |= padded != np.roll(padded, step, axis)
    places = np.flatnonzero(edge & (padded >= 0) & (padded < classes))
    return np.sort(padded.ravel()[places] * padded.size + places)


def _near(some: NDArray[np.int64], others: NDArray[np.int64], columns: int, square: int) -> NDArray[np.bool_]:
    """Return which of ``some`` have one of ``others`` at a squared distance of at most ``square``.

    They are places as in `_boundary`, which has ``columns`` a row. In each row of the disc around a pixel,
    the first of the others from the row's start on must not lie behind its end.
    """
    near = np.zeros(len(some), np.bool_)
    others = np.append(others, np.iinfo(np.int64).max)
    for down in sorted(range(-isqrt(square), isqrt(square) + 1), key=abs):
        half = isqrt(square - down * down)
        far = np.flatnonzero(~near)
        start = some[far] + down * columns - half
        near[far] = others[np.searchsorted(others, start)] <= start + 2 * half
    return near


def _of_image(
    weights: NDArray[np.int64],
    said: NDArray[Any] | None,
    true: NDArray[Any],
    classes: int,
    ignored: NDArray[np.int64],
) -> SemanticPartial:
    left_out = np.isin(true, ignored)
    if reason := _unfit(said, true, left_out, classes):
        return replace(_nothing(classes), excluded=Counter({reason: 1}))
    known = np.setdiff1d(np.arange(classes), ignored)
    truth = true.astype(np.int64, casting="same_kind")
    truth[left_out] = classes
    predicted = np.full_like(truth, classes)
    if said is not None:
        counted = ~left_out & np.isin(said, known)
        predicted[counted] = said[counted]
    pairs = np.bincount((truth * (classes + 1) + predicted).ravel(), minlength=(classes + 1) ** 2)
    confusion = pairs.reshape(classes + 1, classes + 1)[:classes].astype(np.int64)
    pixels = np.stack((confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)[:classes]))
    scores = boundary_f1(predicted, truth, classes)
    return SemanticPartial(
        pixels=weights[:, None, None] * pixels,
        confusion=confusion,
        boundary=weights * np.nanmean(scores),
        images=weights,
        class_boundary=np.nan_to_num(scores),
        class_images=(~np.isnan(scores)).astype(np.int64),
        failed=int(said is None),
        excluded=Counter(),
    )


def _unfit(
    said: NDArray[Any] | None, true: NDArray[Any], left_out: NDArray[np.bool_], classes: int
) -> str | None:
    if said is not None and said.shape != true.shape:
        return OTHER_SIZE
    if not ((true >= 0) & (true < classes) | left_out).all():
        return UNKNOWN_CLASS
    return ALL_IGNORED if left_out.all() else None


def _nothing(classes: int) -> SemanticPartial:
    return SemanticPartial(
        pixels=np.zeros((1 + REPLICATES, 3, classes), np.int64),
        confusion=np.zeros((classes, classes + 1), np.int64),
        boundary=np.zeros(1 + REPLICATES),
        images=np.zeros(1 + REPLICATES, np.int64),
        class_boundary=np.zeros(classes),
        class_images=np.zeros(classes, np.int64),
        failed=0,
        excluded=Counter(),
    )


def _sum(one: SemanticPartial, other: SemanticPartial) -> SemanticPartial:
    if one.confusion.shape != other.confusion.shape:
        raise ValueError(f"partials of {len(one.confusion)} and of {len(other.confusion)} classes")
    return added(one, other)


def of_confusion(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Return ``mIoU``, ``mean_accuracy`` and ``pixel_accuracy`` of pixels (C, C), truth by prediction.

    They are 0 where nothing was counted.
    """
    pixels = np.stack((confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)))
    found = _measures(pixels)
    names = ("mIoU", "mean_accuracy", "pixel_accuracy")
    return {name: float(np.nan_to_num(found[name])) for name in names}


def _measures(pixels: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return the numbers of Long et al., each of the shape that is left of (..., 3, C)."""
    right, true, said = pixels[..., 0, :], pixels[..., 1, :], pixels[..., 2, :]
    iou, total = ratio(right, true + said - right), true.sum(axis=-1)
    return {
        "pixel_accuracy": ratio(right.sum(axis=-1), total),
        "mean_accuracy": _mean(ratio(right, true)),
        "mIoU": _mean(iou),
        "frequency_weighted_IoU": ratio((true * np.nan_to_num(iou)).sum(axis=-1), total),
    }


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last dimension of those that are numbers, NaN where there are none."""
    return ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


def _value(numbers: NDArray[np.float64], images: int) -> Value:
    if not images:
        return Value(None, reason="no image has a truth that counts")
    return bootstrapped(numbers, images)


def _classes(merged: SemanticPartial) -> pa.Table:
    right, true, said = merged.pixels[0]
    numbers = {
        "IoU": ratio(right, true + said - right),
        "accuracy": ratio(right, true),
        "boundary_F1": ratio(merged.class_boundary, merged.class_images),
    }
    counts = {"truth_pixels": true, "predicted_pixels": said, "images": merged.class_images}
    columns = {name: pa.array(each, from_pandas=True) for name, each in numbers.items()}  # NaN becomes null.
    return pa.table({"class": np.arange(len(true)), **columns, **counts})


def _confusion(merged: SemanticPartial) -> pa.Table:
    truth, predicted = np.indices(merged.confusion.shape).reshape(2, -1)
    said = pa.array(predicted, mask=predicted == len(merged.confusion))
    return pa.table({"truth": truth, "predicted": said, "pixels": merged.confusion.ravel()})


def _outcomes(merged: SemanticPartial) -> pa.Table:
    counts = {"predicted": int(merged.images[0]) - merged.failed, "failed": merged.failed}
    counts |= dict(sorted(merged.excluded.items()))
    return pa.table({"outcome": list(counts), "images": pa.array(counts.values(), pa.int64())})
