"""Panoptic quality (Kirillov et al. 2019) of segments, counted as COCO's panopticapi does.

Of an image four numbers a class are kept, which any choice of images adds up. Every array of sums has the
images as they are first, then the bootstrap's replicates, so that one formula serves both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Value
from cnnbatch.metrics.intervals import REPLICATES, poisson_weights
from cnnbatch.metrics.segments import Matched, Segments, match
from cnnbatch.metrics.values import bootstrapped, mean, ratio, weighted

OTHER_SIZE = "images whose predicted segments have another size than the true ones; they are left out"
EMPTY = "predicted segments without a pixel; they are left out"
NO_SEGMENT = "there is no segment of these classes"

_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "PQ": pa.float64(),
    "segments": pa.int64(),
    "segments_found": pa.int64(),
    "segment_missed": pa.string(),
}
SCHEMA = pa.schema(_COLUMNS)
"""A row an image; numbers are null where it is left out.

``PQ`` is the mean over the image's own classes, ``segments`` are those of its truth but crowds, and
``segment_missed`` is the class of the largest that was not found.
"""

_BY_PREDICTION, _BY_TRUTH = (1, 2), (3, 4)
"""Kinds of a class, stuff or things, by who says so: the greater counts where they differ; 0: nobody."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentCounts:
    """What the segments of some images come to, image by image, for N images and C classes.

    ``iou`` is float64 (N, C), the sum of the matched pairs' IoU; ``counts`` int64 (N, 3, C) their number
    (true positives), false positives and false negatives. ``kinds`` (C,) says of each class whether it is of
    things; see `is_thing`. ``judged`` (N,) are the images that count, ``missed`` names the class of the
    largest segment of each that was not found.
    """

    keys: Sequence[str]
    names: tuple[str, ...]
    kinds: NDArray[np.int64]
    iou: NDArray[np.float64]
    counts: NDArray[np.int64]
    judged: NDArray[np.bool_]
    missed: Sequence[str | None]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True, eq=False)
class PanopticPartial:
    """What some images contribute, for C classes, sorted by name, and R replicates.

    ``iou`` is float64 (1 + R, C), ``counts`` int64 (1 + R, 3, C), ``kinds`` (C,), as in `SegmentCounts`.
    ``rows`` are those of the images (`SCHEMA`), which merging leaves out, and ``left_out`` counts by reason.
    """

    names: tuple[str, ...]
    kinds: NDArray[np.int64]
    iou: NDArray[np.float64]
    counts: NDArray[np.int64]
    images: int
    left_out: Counter[str]
    rows: pa.Table | None = None


def count(
    keys: Sequence[str], predicted: Iterable[Segments | None], truth: Iterable[Segments]
) -> SegmentCounts:
    """Match the segments of some images, each taken when it is needed.

    A failed image's prediction is None: all segments of its truth are false negatives. An image is left out
    where the sizes of its masks differ. Of segments that overlap, a pixel belongs to the first.

    Raises:
        ValueError: ``keys``, ``predicted`` and ``truth`` differ in length.
    """
    kinds: dict[str, int] = {}
    numbers: dict[str, int] = {}
    found: list[Matched | None] = []
    left_out = Counter[str]()
    for _, said, true in zip(keys, predicted, truth, strict=True):
        said = said or Segments((), (), ())
        if len({tuple(mask["size"]) for mask in (*said.masks, *true.masks)}) > 1:
            left_out[OTHER_SIZE] += 1
            found.append(None)
            continue
        _learn_kinds(kinds, said, *_BY_PREDICTION)
        _learn_kinds(kinds, true, *_BY_TRUTH)
        numbers |= {name: place for place, name in enumerate(kinds)}
        matched = match(said, true, numbers)
        left_out[EMPTY] += matched.empty
        found.append(matched)
    return _gathered(keys, tuple(kinds), kinds, found, +left_out)


def partial(counts: SegmentCounts, some: NDArray[np.int64] | None = None) -> PanopticPartial:
    """Add up all images, or ``some`` by their places: of these only the numbers, not what tables have."""
    places = np.arange(len(counts.keys)) if some is None else some
    rows = places[counts.judged[places]]
    weights = np.insert(poisson_weights([counts.keys[row] for row in rows]), 0, 1, axis=1)  # [N, 1 + R]
    order = sorted(range(len(counts.names)), key=counts.names.__getitem__)
    sums = weighted(weights, counts.counts[rows])
    return PanopticPartial(
        names=tuple(counts.names[place] for place in order),
        kinds=counts.kinds[order],
        iou=(weights.T @ counts.iou[rows])[:, order],
        counts=sums[:, :, order],
        images=len(rows),
        left_out=counts.left_out if some is None else Counter(),
        rows=image_rows(counts) if some is None else None,
    )


def merge(partials: Iterable[PanopticPartial]) -> PanopticPartial:
    """Add up one or more partials, each as it comes, by the names of their classes."""
    return reduce(_sum, partials)


def result(merged: PanopticPartial) -> Evaluated:
    """Return the qualities of all classes, of things and of stuff, and the table ``panoptic_classes``.

    A class's ``PQ`` is the sum of its matched pairs' IoU over TP + FP / 2 + FN / 2 (Kirillov, He, Girshick,
    Rother, Dollár: Panoptic segmentation, 2019, equation 1), the product of the segmentation quality
    ``SQ``, the pairs' mean IoU, and the recognition quality ``RQ``, their F1 (equation 2). The metrics are
    the means over the classes with a TP, FP or FN, for ``PQ_things`` and so on over some of them; each
    stands on the number of images.
    """
    things = is_thing(merged.kinds)
    qualities = _qualities(merged.iou, merged.counts)
    metrics = {
        name + suffix: _value(each[:, some], merged.images)
        for suffix, some in (("", things | True), ("_things", things), ("_stuff", ~things))
        for name, each in qualities.items()
    }
    return Evaluated(metrics, {"panoptic_classes": _classes(merged, qualities)})


def _learn_kinds(kinds: dict[str, int], segments: Segments, stuff: int, thing: int) -> None:
    """Add the classes of some segments, and what these say of them."""
    for label, kind in zip(segments.labels, segments.things, strict=True):
        own = 0 if kind is None else thing if kind else stuff
        kinds[label] = max(own, kinds.get(label, 0))


def is_thing(kinds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which classes are of things: by the truth, else by the predictions; if nobody says, of stuff."""
    things: NDArray[np.bool_] = (kinds > 0) & (kinds % 2 == 0)
    return things


def image_rows(counts: SegmentCounts) -> pa.Table:
    """Return a row an image (`SCHEMA`)."""
    qualities = _qualities(counts.iou, counts.counts)["PQ"]
    hits, missed = counts.counts[:, 0].sum(axis=1), counts.counts[:, 2].sum(axis=1)
    left_out = ~counts.judged
    columns: list[Any] = [
        pa.array(counts.keys, pa.string()),
        pa.array(mean(qualities), from_pandas=True),
        pa.array(hits + missed, mask=left_out),
        pa.array(hits, mask=left_out),
        pa.array(counts.missed, pa.string()),
    ]
    return pa.table(columns, schema=SCHEMA)


def _gathered(
    keys: Sequence[str],
    names: tuple[str, ...],
    kinds: Mapping[str, int],
    found: Sequence[Matched | None],
    left_out: Counter[str],
) -> SegmentCounts:
    """Return the matches of all images as arrays."""
    iou, counts = np.zeros((len(keys), len(names))), np.zeros((len(keys), 3, len(names)), np.int64)
    for place, one in enumerate(found):
        if one is not None:
            np.add.at(iou[place], one.hits, one.iou)
            for row, some in enumerate((one.hits, one.wrong, one.missed)):
                np.add.at(counts[place, row], some, 1)
    return SegmentCounts(
        keys=keys,
        names=names,
        kinds=np.array([kinds[name] for name in names], np.int64),
        iou=iou,
        counts=counts,
        judged=np.array([one is not None for one in found], np.bool_),
        missed=[one.largest if one else None for one in found],
        left_out=left_out,
    )


def _sum(one: PanopticPartial, other: PanopticPartial) -> PanopticPartial:
    names = tuple(sorted({*one.names, *other.names}))
    one, other = _widened(one, names), _widened(other, names)
    return PanopticPartial(
        names=names,
        kinds=np.maximum(one.kinds, other.kinds),
        iou=one.iou + other.iou,
        counts=one.counts + other.counts,
        images=one.images + other.images,
        left_out=one.left_out + other.left_out,
    )


def _widened(one: PanopticPartial, names: tuple[str, ...]) -> PanopticPartial:
    """Return ``one`` with further classes; all names are sorted."""
    if one.names == names:
        return one
    places = np.isin(names, one.names) if one.names else np.zeros(len(names), np.bool_)
    kinds, iou = np.zeros(len(names), np.int64), np.zeros((1 + REPLICATES, len(names)))
    counts = np.zeros((1 + REPLICATES, 3, len(names)), np.int64)
    kinds[places], iou[:, places], counts[:, :, places] = one.kinds, one.iou, one.counts
    return replace(one, names=names, kinds=kinds, iou=iou, counts=counts)


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
    means = mean(of_classes)
    if np.isnan(means[0]):
        return Value(None, count=images, reason=NO_SEGMENT)
    return bootstrapped(means, images)


def _classes(merged: PanopticPartial, qualities: Mapping[str, NDArray[np.float64]]) -> pa.Table:
    numbers = {name: pa.array(each[0], from_pandas=True) for name, each in qualities.items()}  # NaN: null.
    hits, wrong, missed = merged.counts[0]
    counts = {"truths": hits + missed, "detections": hits + wrong}
    found = {"true_positives": hits, "false_positives": wrong, "false_negatives": missed}
    columns: dict[str, Any] = {
        "label": pa.array(merged.names, pa.string()),
        "is_thing": pa.array(is_thing(merged.kinds)),
        **counts,
        **numbers,
        **found,
    }
    return pa.table(columns)
