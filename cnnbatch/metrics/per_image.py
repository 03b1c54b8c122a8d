"""What each image contributes to a detector's numbers: how many objects it has, how many were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics.objects import Objects, group_numbers, ranks
from cnnbatch.metrics.values import ratio

_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "truths": pa.int64(),
    "detections": pa.int64(),
    "found": pa.int64(),
    "AP": pa.float64(),
    "AP50": pa.float64(),
    "mistake": pa.string(),
    "mistake_score": pa.float64(),
}
SCHEMA = pa.schema(_COLUMNS)
"""``found`` are truths matched at IoU 0.5; ``AP`` is null for an image without objects.

``mistake`` is the class of the image's most confident false positive at IoU 0.5, null where it has none.
"""


def table(
    keys: Any,
    names: Sequence[str],
    found: Objects,
    truths: Objects,
    right: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
) -> pa.Table:
    """Return a row an image.

    ``names`` are those of the classes' numbers. ``found`` and ``truths`` lie by image and class,
    detections best first; ``right`` and ``ignored`` are (detections, T). ``AP`` is the mean over the
    image's classes and the thresholds of the precision at each right detection, over the class's truths:
    average precision in its first form (Salton, McGill 1983), without interpolation, since one image has
    too few recalls for that.
    """
    images = len(keys)
    counts = np.bincount(truths.image, minlength=images)
    precision = _average_precision(found, truths, right, ignored)
    columns = [
        keys.cast(pa.string()),
        counts,
        np.bincount(found.image, minlength=images),
        np.bincount(found.image[right[:, 0]], minlength=images),
        pa.array(_mean(truths, precision.mean(axis=1), images), from_pandas=True),
        pa.array(_mean(truths, precision[:, 0], images), from_pandas=True),
        *_mistakes(names, found.take(~right[:, 0] & ~ignored[:, 0]), images),
    ]
    return pa.table(columns, schema=SCHEMA)


def _mistakes(names: Sequence[str], wrong: Objects, images: int) -> tuple[Any, Any]:
    """Return the class and the score of each image's most confident detection among ``wrong``.

    Equal scores go by the class's name: its number depends on which images lie together.
    """
    by_name = np.argsort(np.argsort(np.array(names, np.str_), kind="stable"))
    order = np.lexsort((by_name[wrong.label], -wrong.score, wrong.image))
    image, first = np.unique(wrong.image[order], return_index=True)
    row = np.full(images, -1)
    row[image] = order[first]
    labels = pa.array(names, pa.string()).take(pa.array(wrong.label, pa.int64()))
    wanted = pa.table({"label": labels, "score": wrong.score}).take(pa.array(row, mask=row < 0))
    return wanted["label"], wanted["score"]


def _average_precision(
    found: Objects, truths: Objects, right: NDArray[np.bool_], ignored: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return for each truth the average precision of its image and class at each threshold, (G, T)."""
    groups, wanted = group_numbers(found), group_numbers(truths)
    hits, counted = _running(groups, right), _running(groups, ~ignored)
    gains = np.where(right, hits / np.maximum(counted, 1), 0)
    sums = np.concatenate([np.zeros((1, right.shape[1])), np.cumsum(gains, axis=0)])
    low, high = np.searchsorted(groups, wanted, "left"), np.searchsorted(groups, wanted, "right")
    sizes = np.searchsorted(wanted, wanted, "right") - np.searchsorted(wanted, wanted, "left")
    precision: NDArray[np.float64] = (sums[high] - sums[low]) / sizes[:, None]
    return precision


def _running(groups: NDArray[np.int64], flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many flags there are up to and with each row, within its group."""
    sums = np.cumsum(flags, axis=0)
    starts = np.arange(len(groups)) - ranks(groups)
    before = np.concatenate([np.zeros((1, flags.shape[1]), np.int64), sums])
    running: NDArray[np.int64] = sums - before[starts]
    return running


def _mean(truths: Objects, of_class: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """Return each image's mean over its classes of a value that each of its truths has for its class."""
    first = ranks(group_numbers(truths)) == 0
    classes = np.bincount(truths.image[first], minlength=images)
    sums = np.bincount(truths.image[first], of_class[first], minlength=images)
    return ratio(sums, classes)
