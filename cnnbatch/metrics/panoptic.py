"""Panoptic quality (Kirillov et al. 2019), counted as COCO's panopticapi counts it.

Only sums are kept, never a map: four numbers a class and replicate. Every array of sums has the images
as they are first, then the bootstrap's replicates, so that one formula serves both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Value
from cnnbatch.metrics.intervals import REPLICATES, poisson_weights
from cnnbatch.metrics.values import bootstrapped, ratio

OTHER_SIZE = "the prediction has another size than the truth"
UNKNOWN_SEGMENT = "the truth has a segment whose class is not known"


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The segments of an image: ``ids`` (H, W) of any integer type, 0 where there is none (void).

    ``classes`` names the class of each segment; those in ``crowd`` are groups of it (COCO's ``iscrowd``).

    Raises:
        ValueError: a segment's id is not above 0.
    """

    ids: NDArray[Any]
    classes: Mapping[int, str]
    crowd: Collection[int] = ()

    def __post_init__(self) -> None:
        if min(self.classes, default=1) <= 0:
            raise ValueError(f"the ids of segments begin at 1, here is {min(self.classes)}")


@dataclass(frozen=True, slots=True, eq=False)
class PanopticPartial:
    """What some images contribute, for C classes and R replicates, the images as they are first.

    ``classes`` says of each by name whether it is of things, else of stuff. ``iou`` is float64 (1 + R, C),
    the sum of the matched pairs' IoU; ``counts`` int64 (1 + R, 3, C) their number (true positives), false
    positives and false negatives. Failed images are among ``images``, ``excluded`` ones, by their reason,
    are not.
    """

    classes: Mapping[str, bool]
    iou: NDArray[np.float64]
    counts: NDArray[np.int64]
    images: int
    failed: int
    excluded: Counter[str]


def partial(
    keys: Sequence[str],
    predicted: Iterable[Segments | None],
    truth: Iterable[Segments],
    classes: Mapping[str, bool],
) -> PanopticPartial:
    """Match the segments of some images; ``classes`` says of each name whether it is of things.

    A failed image's prediction is None: all segments of its truth are false negatives. An image is
    excluded where the two sizes differ, or where its truth has an id without a class or an unknown class.

    Raises:
        ValueError: ``keys``, ``predicted`` and ``truth`` differ in length, or a prediction has an id
            without a class, an unknown class or a segment without pixels.
    """
    weights = np.insert(poisson_weights(keys).astype(np.int64), 0, 1, axis=1)  # [N, 1 + R]
    images = zip(keys, weights, predicted, truth, strict=True)
    return merge(chain([_nothing(classes)], (_of_image(*image, classes) for image in images)))


def merge(partials: Iterable[PanopticPartial]) -> PanopticPartial:
    """Add up one or more partials, each as it comes.

    Raises:
        ValueError: they are of different classes.
    """
    return reduce(_sum, partials)


def result(merged: PanopticPartial) -> Evaluated:
    """Return the qualities of all classes, of things and of stuff, and tables ``classes`` and ``outcomes``.

    A class's ``PQ`` is the sum of its matched pairs' IoU over TP + FP / 2 + FN / 2 (Kirillov, He, Girshick,
    Rother, Dollár: Panoptic segmentation, 2019, equation 1), the product of the segmentation quality
    ``SQ``, the pairs' mean IoU, and the recognition quality ``RQ``, their F1 (equation 2). The metrics are
    the means over the classes with a TP, FP or FN, for ``PQ_things`` and so on over some of them; each
    stands on the number of images.
    """
    things = np.array(list(merged.classes.values()), np.bool_)
    qualities = _qualities(merged.iou, merged.counts)
    metrics = {
        name + suffix: _value(each[:, some], merged.images)
        for suffix, some in (("", things | True), ("_things", things), ("_stuff", ~things))
        for name, each in qualities.items()
    }
    return Evaluated(metrics, {"classes": _classes(merged, qualities), "outcomes": _outcomes(merged)})


def match(
    predicted: Segments, truth: Segments, classes: Iterable[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return of each class the sum of the matched pairs' IoU, (C,), and their TP, FP and FN, (3, C).

    A pair is matched where it has one class and an IoU above 0.5, which then no other pair of the two has
    (Kirillov et al., theorem 1). Void pixels of the truth are left out of the union; a crowd matches
    nothing and is not missed; and a segment of which more than half lies in void or in the crowd of its
    class is no false positive. All as ``pq_compute`` of COCO's panopticapi does it, where of several
    crowds of a class the last counts.

    Raises:
        ValueError: a map has an id without a class, a class is none of ``classes``, or a prediction's
            segment has no pixel.
    """
    names = list(classes)
    return _match(_numbered(predicted, names), _numbered(truth, names), truth, len(names))


class _Numbered(NamedTuple):
    """The segments of an image as rows, void as row 0: ids and classes (S,), and each pixel's row."""

    ids: NDArray[np.int64]
    classes: NDArray[np.int64]
    rows: NDArray[np.int64]


def _numbered(segments: Segments, names: Sequence[str]) -> _Numbered:
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := sorted(set(segments.classes.values()) - set(names)):
        raise ValueError(f"a segment is of class {unknown[0]!r}, which is none of the classes")
    ids = np.array([0, *sorted(segments.classes)], np.int64)
    of_rows = np.array([-1, *(numbers[segments.classes[one]] for one in ids[1:].tolist())], np.int64)
    pixels = segments.ids.ravel().astype(np.int64, casting="same_kind")
    rows = np.searchsorted(ids, pixels).clip(max=len(ids) - 1)
    if (unknown := ids[rows] != pixels).any():
        raise ValueError(f"the map has segment {pixels[unknown][0]}, which has no class")
    return _Numbered(ids, of_rows, rows)


def _match(
    said: _Numbered, true: _Numbered, truth: Segments, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    said_area, true_area = (np.bincount(each.rows, minlength=len(each.ids)) for each in (said, true))
    if not said_area[1:].all():
        raise ValueError(f"segment {said.ids[1:][said_area[1:] == 0][0]} has no pixel")
    codes, shared = np.unique(true.rows * len(said.ids) + said.rows, return_counts=True)
    first, second = np.divmod(codes, len(said.ids))  # The pairs that share pixels: rows of truth, prediction.
    void = np.zeros_like(said_area)
    void[second[first == 0]] = shared[first == 0]
    union = true_area[first] + said_area[second] - shared - void[second]
    crowd = np.isin(true.ids, list(truth.crowd))
    alike = (first > 0) & (true.classes[first] == said.classes[second])
    hit = alike & ~crowd[first] & (2 * shared > union)

    last = {name: one for one, name in truth.classes.items() if one in truth.crowd}  # The last of each class.
    in_crowd = alike & np.isin(true.ids, list(last.values()))[first]
    ignored = void.copy()
    ignored[second[in_crowd]] += shared[in_crowd]
    wrong = 2 * ignored <= said_area
    wrong[second[hit]] = wrong[0] = False
    missed = ~crowd
    missed[first[hit]] = missed[0] = False

    of_hits, overlap = true.classes[first[hit]], shared[hit].astype(np.float64) / union[hit]
    counted = (of_hits, said.classes[wrong], true.classes[missed])
    iou: NDArray[np.float64] = np.zeros(classes)
    np.add.at(iou, of_hits, overlap)
    return iou, np.stack([np.bincount(some, minlength=classes) for some in counted]).astype(np.int64)


def _of_image(
    key: str,
    weights: NDArray[np.int64],
    predicted: Segments | None,
    truth: Segments,
    classes: Mapping[str, bool],
) -> PanopticPartial:
    names, nothing = list(classes), _nothing(classes)
    said = predicted or Segments(np.zeros_like(truth.ids), {})
    if said.ids.shape != truth.ids.shape:
        return replace(nothing, excluded=Counter({OTHER_SIZE: 1}))
    try:
        true = _numbered(truth, names)
    except ValueError:
        return replace(nothing, excluded=Counter({UNKNOWN_SEGMENT: 1}))
    try:
        iou, counts = _match(_numbered(said, names), true, truth, len(names))
    except ValueError as error:
        raise ValueError(f"the prediction of {key}: {error}") from error
    return PanopticPartial(
        classes=classes,
        iou=weights[:, None] * iou,
        counts=weights[:, None, None] * counts,
        images=1,
        failed=int(predicted is None),
        excluded=Counter(),
    )


def _nothing(classes: Mapping[str, bool]) -> PanopticPartial:
    return PanopticPartial(
        classes=classes,
        iou=np.zeros((1 + REPLICATES, len(classes))),
        counts=np.zeros((1 + REPLICATES, 3, len(classes)), np.int64),
        images=0,
        failed=0,
        excluded=Counter(),
    )


def _sum(one: PanopticPartial, other: PanopticPartial) -> PanopticPartial:
    if list(one.classes.items()) != list(other.classes.items()):
        raise ValueError("partials of different classes")
    return PanopticPartial(
        classes=one.classes,
        iou=one.iou + other.iou,
        counts=one.counts + other.counts,
        images=one.images + other.images,
        failed=one.failed + other.failed,
        excluded=one.excluded + other.excluded,
    )


def _qualities(iou: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return PQ, SQ and RQ (..., C), NaN for a class without segments; SQ is 0 where none is matched."""
    hits, wrong, missed = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    segments = hits + (wrong + missed) / 2
    return {
        "PQ": ratio(iou, segments),
        "SQ": np.where(segments > 0, np.nan_to_num(ratio(iou, hits)), np.nan),
        "RQ": ratio(hits, segments),
    }


def _value(of_classes: NDArray[np.float64], images: int) -> Value:
    """Return the mean over those classes that have segments, of the images and of each replicate."""
    means = ratio(np.nansum(of_classes, axis=1), (~np.isnan(of_classes)).sum(axis=1))
    if np.isnan(means[0]):
        return Value(None, count=images, reason="there is no segment of these classes")
    return bootstrapped(means, images)


def _classes(merged: PanopticPartial, qualities: Mapping[str, NDArray[np.float64]]) -> pa.Table:
    numbers = {name: pa.array(each[0], from_pandas=True) for name, each in qualities.items()}  # NaN: null.
    counts = dict(zip(("TP", "FP", "FN"), merged.counts[0], strict=True))
    names, things = list(merged.classes), list(merged.classes.values())
    return pa.table(
        {"label": pa.array(names, pa.string()), "thing": pa.array(things, pa.bool_()), **numbers, **counts}
    )


def _outcomes(merged: PanopticPartial) -> pa.Table:
    counts = {"predicted": merged.images - merged.failed, "failed": merged.failed}
    counts |= dict(sorted(merged.excluded.items()))
    return pa.table({"outcome": list(counts), "images": pa.array(counts.values(), pa.int64())})
