"""Semantic segmentation from maps of numbers: accuracies, IoU, and how well boundaries are met.

Maps are looked at one by one; of each six sums a class are kept, which any choice of images adds up. Every
array of such sums has the images as they are first, then the bootstrap's replicates, so that one formula
serves both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Value, boundaries
from cnnbatch.metrics.intervals import poisson_weights
from cnnbatch.metrics.numbering import Numbering
from cnnbatch.metrics.values import bootstrapped, mean, ratio, weighted

OTHER_SIZE = "images whose predicted map has another size than the true one; they are left out"
UNKNOWN_NUMBER = "images whose true map has a number that is neither a class nor ignored; they are left out"
NOTHING_COUNTS = "images whose true map has no pixel that counts; they are left out"
IGNORED = "pixels that the ground truth says to ignore; they do not count"
UNKNOWN_CLASS = "pixels of {}, a class that the model does not know; they do not count"
NO_IMAGE = "no image has ground truth that counts"

_PIXELS = 1 << 20  # that are counted at a time

_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "mIoU": pa.float64(),
    "pixel_accuracy": pa.float64(),
    "boundary_F1": pa.float64(),
    "pixels": pa.int64(),
    "missed": pa.string(),
    "missed_share": pa.float64(),
    "truth_crc32": pa.int64(),
}
SCHEMA = pa.schema(_COLUMNS)
"""A row an image; numbers are null where it is left out.

``mIoU`` is the mean over the classes of its truth, ``pixels`` are those that count, ``missed`` is the class
that most of its pixels were not found of, which are ``missed_share`` of all that count; null where all were.
"""


@dataclass(frozen=True, slots=True, eq=False)
class MapCounts:
    """What some maps come to, image by image, for N images and C classes.

    ``pixels`` is int64 (N, 6, C): of each class those that are right, those in the truth, those predicted,
    and the same of their bands along boundaries (`boundaries.band`). ``boundary`` is float64 (N, C), NaN
    where an image's truth has no such class. ``counts`` (N,) says which images count, ``failed`` which of
    them have no prediction, ``truths`` are checksums of their true maps, 0 for one that does not count.
    ``confusion`` is int64 (C, C + 2), truth by prediction; the last columns are no class, and failed images.
    """

    keys: Sequence[str]
    names: tuple[str, ...]
    pixels: NDArray[np.int64]
    boundary: NDArray[np.float64]
    counts: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    truths: NDArray[np.int64]
    confusion: NDArray[np.int64]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True, eq=False)
class SemanticPartial:
    """What some images contribute, for C classes and R replicates, the images as they are first.

    ``pixels`` is int64 (1 + R, 6, C) as in `MapCounts`. ``scores`` is float64 (1 + R, 2), the sums of the
    images' own mIoU and boundary F1, ``images`` int64 (1 + R,) their number. ``class_boundary`` and
    ``class_images`` (C,) are the boundary F1 of each class, over the images whose truth has it. ``rows`` are
    those of the images (`SCHEMA`), which merging leaves out, and ``left_out`` counts by reason.
    """

    names: tuple[str, ...]
    pixels: NDArray[np.int64]
    scores: NDArray[np.float64]
    images: NDArray[np.int64]
    class_boundary: NDArray[np.float64]
    class_images: NDArray[np.int64]
    confusion: NDArray[np.int64]
    left_out: Counter[str]
    rows: pa.Table | None = None


def count(
    keys: Sequence[str],
    predicted: Iterable[NDArray[Any] | None],
    truth: Iterable[NDArray[Any]],
    numbering: Numbering,
) -> MapCounts:
    """Count some images: maps (H, W) of unsigned 8 or 16 bits, each taken when it is needed.

    Pixels that the truth ignores are left out. What is predicted as no judged class is a miss; so are all
    pixels of a failed image, whose prediction is None. An image is left out where the two sizes differ, or
    where its truth has other numbers or nothing to count.

    Raises:
        ValueError: ``keys``, ``predicted`` and ``truth`` differ in length.
    """
    classes = len(numbering.names)
    found = MapCounts(
        keys=keys,
        names=numbering.names,
        pixels=np.zeros((len(keys), 6, classes), np.int64),
        boundary=np.full((len(keys), classes), np.nan),
        counts=np.zeros(len(keys), np.bool_),
        failed=np.zeros(len(keys), np.bool_),
        truths=np.zeros(len(keys), np.int64),
        confusion=np.zeros((classes, classes + 2), np.int64),
        left_out=Counter(),
    )
    for place, (_, said, true) in enumerate(zip(keys, predicted, truth, strict=True)):
        _count_image(found, place, said, true, numbering)
    return found


def partial(counts: MapCounts, some: NDArray[np.int64] | None = None) -> SemanticPartial:
    """Add up all images, or ``some`` by their places: of these only the numbers, not what tables have."""
    places = np.arange(len(counts.keys)) if some is None else some
    rows = places[counts.counts[places]]
    weights = np.insert(poisson_weights([counts.keys[row] for row in rows]), 0, 1, axis=1)  # [N, 1 + R]
    pixels, boundary = counts.pixels[rows], counts.boundary[rows]
    scores = np.stack([mean(_iou_of_truth(pixels)), mean(boundary)], axis=1)
    return SemanticPartial(
        names=counts.names,
        pixels=weighted(weights, pixels),
        scores=weights.T @ scores,
        images=weights.sum(axis=0, dtype=np.int64),
        class_boundary=np.nansum(boundary, axis=0),
        class_images=(~np.isnan(boundary)).sum(axis=0),
        confusion=counts.confusion if some is None else np.zeros_like(counts.confusion),
        left_out=counts.left_out if some is None else Counter(),
        rows=image_rows(counts) if some is None else None,
    )


def merge(partials: Iterable[SemanticPartial]) -> SemanticPartial:
    """Add up one or more partials, each as it comes.

    Raises:
        ValueError: they are of different classes.
    """
    return reduce(_sum, partials)


def result(merged: SemanticPartial) -> Evaluated:
    """Return the numbers of all images, and the tables ``classes`` and ``confusion``.

    ``mIoU``, ``pixel_accuracy``, ``mean_accuracy`` and ``frequency_weighted_IoU`` are those of Long,
    Shelhamer, Darrell: Fully convolutional networks for semantic segmentation (2015), section 5, and its
    ``score.py``, over all pixels of the data set: the mean IoU leaves out a class that is in neither truth
    nor prediction and counts 0 for one that is only predicted; the mean accuracy leaves out both.
    ``mIoU_per_image`` is the mean over the images of each one's own mean over the classes of its truth, as
    Csurka, Larlus, Perronnin (2013) and Wang et al., Revisiting evaluation metrics for semantic segmentation
    (2023), take it. ``boundary_F1`` is the mean of `boundaries.boundary_f1` over the classes of an image's
    truth, then over the images (Badrinarayanan, Kendall, Cipolla: SegNet, 2017, section 3.3).
    ``boundary_IoU`` is the mean over the classes, as for the mean IoU, of the IoU of their pixels in
    `boundaries.band`, in all of the data set (Cheng et al. 2021). What is predicted at ignored pixels is of
    no class there, for both, so that a boundary among them is seen where they end.

    Each stands on the number of images. In ``confusion``, which counts pixels, ``predicted`` is null for no
    class, and for those of images that ``failed``.
    """
    count = int(merged.images[0])
    metrics = {name: _value(each, count) for name, each in _measures(merged).items()}
    return Evaluated(metrics, {"classes": _classes(merged), "confusion": _confusion(merged)})


def image_rows(counts: MapCounts) -> pa.Table:
    """Return a row an image (`SCHEMA`)."""
    right, true = counts.pixels[:, 0], counts.pixels[:, 1]
    missed, total = true - right, true.sum(axis=1)
    names: Any = pa.array(counts.names, pa.string())
    lacks: NDArray[np.bool_] = missed.sum(axis=1) > 0
    columns: list[Any] = [
        pa.array(counts.keys, pa.string()),
        *(
            pa.array(each, from_pandas=True)
            for each in (
                mean(_iou_of_truth(counts.pixels)),
                ratio(right.sum(axis=1), total),
                mean(counts.boundary),
            )
        ),
        pa.array(total, mask=~counts.counts),
        names.take(pa.array(_most(missed), mask=~lacks)),
        pa.array(ratio(missed.max(axis=1, initial=0), total), mask=~lacks),
        pa.array(counts.truths, mask=~counts.counts),
    ]
    return pa.table(columns, schema=SCHEMA)


def pairs(said: NDArray[Any] | None, true: NDArray[Any], numbering: Numbering) -> NDArray[np.int64]:
    """Count the pixels of one image by the places of both their numbers in ``numbering``, (codes, C + 1)."""
    shape = numbering.codes, len(numbering.names) + 1
    counts: NDArray[np.int64] = np.zeros(shape, np.int64)
    rows = max(1, _PIXELS // max(1, true.shape[-1]))
    for some in (slice(start, start + rows) for start in range(0, len(true), rows)):
        predicted = shape[1] - 1 if said is None else numbering.predicted[said[some]]
        both = np.multiply(numbering.truth[true[some]], shape[1], dtype=np.int64) + predicted
        counts += np.bincount(both.ravel(), minlength=counts.size).reshape(shape)
    return counts


def own_iou(confusion: NDArray[np.int64]) -> float:
    """Return the mean IoU of one image over the classes of its truth, NaN of none; (C, C + 1) as `pairs`."""
    return float(mean(_iou_of_truth(_regions(confusion)[None]))[0])


def _count_image(
    found: MapCounts, place: int, said: NDArray[Any] | None, true: NDArray[Any], numbering: Numbering
) -> None:
    """Count one image into row ``place``."""
    classes = len(numbering.names)
    if said is not None and said.shape != true.shape:
        found.left_out[OTHER_SIZE] += 1
        return
    counts = pairs(said, true, numbering)
    confusion, rest = counts[:classes], counts[classes:].sum(axis=1)
    if rest[-1] or not confusion.any():
        found.left_out[UNKNOWN_NUMBER if rest[-1] else NOTHING_COUNTS] += 1
        return
    named = (IGNORED, *map(UNKNOWN_CLASS.format, numbering.unknown))
    found.left_out.update(+Counter(dict(zip(named, rest.tolist(), strict=False))))
    found.counts[place], found.failed[place] = True, said is None
    found.confusion[:, :classes] += confusion[:, :classes]
    found.confusion[:, classes + (said is None)] += confusion[:, classes]
    found.truths[place] = crc32(np.ascontiguousarray(true).data)
    truth = numbering.truth[true]
    predicted = np.full_like(truth, classes) if said is None else numbering.predicted[said]
    left_out = truth >= classes
    truth[left_out] = predicted[left_out] = classes
    found.pixels[place, :3] = _regions(confusion)
    found.pixels[place, 3:] = _bands(predicted, truth, classes)
    found.boundary[place] = boundaries.boundary_f1(predicted, truth, classes)


def _regions(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the right, the true and the predicted pixels of each class, (3, C)."""
    classes = len(confusion)
    return np.stack((confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)[:classes]))


def _bands(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Return the same of the pixels in the bands along boundaries, (3, C)."""
    said, true = boundaries.band(predicted), boundaries.band(truth)
    right = truth[said & true & (predicted == truth)]
    some = (right, truth[true], predicted[said])
    return np.stack([np.bincount(each, minlength=classes + 1)[:classes] for each in some])


def _sum(one: SemanticPartial, other: SemanticPartial) -> SemanticPartial:
    if one.names != other.names:
        raise ValueError(f"partials of the classes {', '.join(one.names)} and {', '.join(other.names)}")
    sums = {
        field.name: getattr(one, field.name) + getattr(other, field.name)
        for field in fields(one)
        if field.name not in ("names", "rows")
    }
    return SemanticPartial(names=one.names, **sums)


def of_confusion(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Return ``mIoU``, ``mean_accuracy`` and ``pixel_accuracy`` of pixels (C, C), truth by prediction.

    They are 0 where nothing was counted.
    """
    right, true, said = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    found = {
        "mIoU": mean(_iou(right, true, said)),
        "mean_accuracy": mean(ratio(right, true)),
        "pixel_accuracy": ratio(right.sum(), true.sum()),
    }
    return {name: float(np.nan_to_num(value)) for name, value in found.items()}


def _measures(merged: SemanticPartial) -> dict[str, NDArray[np.float64]]:
    """Return every number, of the images and of each replicate, (1 + R,)."""
    right, true, said, *bands = np.moveaxis(merged.pixels, 1, 0)  # each [1 + R, C]
    iou, total = ratio(right, true + said - right), true.sum(axis=-1)
    per_image, boundary = ratio(merged.scores, np.broadcast_to(merged.images[:, None], merged.scores.shape)).T
    return {
        "mIoU": mean(iou),
        "mIoU_per_image": per_image,
        "pixel_accuracy": ratio(right.sum(axis=-1), total),
        "mean_accuracy": mean(ratio(right, true)),
        "frequency_weighted_IoU": ratio((true * np.nan_to_num(iou)).sum(axis=-1), total),
        "boundary_F1": boundary,
        "boundary_IoU": mean(_iou(*bands)),
    }


def _iou(right: NDArray[np.int64], true: NDArray[np.int64], said: NDArray[np.int64]) -> NDArray[np.float64]:
    return ratio(right, true + said - right)


def _iou_of_truth(pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each image's classes, (N, C), NaN for those that its truth has not."""
    right, true, said = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    return np.where(true > 0, _iou(right, true, said), np.nan)


def _most(missed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of the most missed pixels of each image, (N,)."""
    return missed.argmax(axis=1) if missed.shape[1] else np.zeros(len(missed), np.int64)


def _value(numbers: NDArray[np.float64], images: int) -> Value:
    return bootstrapped(numbers, images) if images else Value(None, reason=NO_IMAGE)


def _classes(merged: SemanticPartial) -> pa.Table:
    right, true, said, *bands = merged.pixels[0]
    numbers = {
        "IoU": _iou(right, true, said),
        "accuracy": ratio(right, true),
        "boundary_F1": ratio(merged.class_boundary, merged.class_images),
        "boundary_IoU": _iou(*bands),
    }
    columns = {name: pa.array(each, from_pandas=True) for name, each in numbers.items()}  # NaN becomes null.
    counts = {"truths": true, "predicted": said, "images": merged.class_images}
    return pa.table({"label": pa.array(merged.names, pa.string()), **counts, **columns})


def _confusion(merged: SemanticPartial) -> pa.Table:
    """Return the cells that are not zero."""
    names: Any = pa.array(merged.names, pa.string())
    truth, predicted = np.nonzero(merged.confusion)
    return pa.table(
        {
            "truth": names.take(pa.array(truth)),
            "predicted": names.take(pa.array(predicted, mask=predicted >= len(names))),
            "failed": pa.array(predicted > len(names)),
            "count": pa.array(merged.confusion[truth, predicted]),
        }
    )
