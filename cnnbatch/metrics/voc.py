"""Average precision as PASCAL VOC has it (Everingham et al. 2010) and ImageNet-DET (Russakovsky et al. 2015).

As in `cnnbatch.metrics.coco`, a partial has a row for each detection, and a class is ranked at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial as bound
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, Value
from cnnbatch.metrics.average_precision import (
    Ranking,
    count_replicates,
    envelope,
    interpolated,
    mean_over_classes,
    rankings,
    weighted,
)
from cnnbatch.metrics.by_class import ROWS_IN_MEMORY, DetectionPartial, MergedRows
from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.metrics.matching import Candidates, match
from cnnbatch.metrics.objects import (
    Labels,
    ObjectPairs,
    Objects,
    best_first,
    by_group,
    comparable,
    flatten_things,
    group_numbers,
    image_order,
    iou_xywh,
    object_fields,
    pairs,
)
from cnnbatch.types import Map, here

NAMES = ("VOC2007_AP50", "VOC2010_AP50", "DET_AP")
ELEVEN = np.linspace(0.0, 1.0, 11)
"""VOC 2007's recalls, in the floats of the usual ``voc_eval.py``: 0.3, 0.6 and 0.7 are rounded up, so that a
recall of just this fraction does not reach them. The development kit's MATLAB may round otherwise."""

_ENOUGH = 0.5
_MARGIN = 10.0  # Pixels that ImageNet-DET grants a box, in width and height.
_VOC_RIGHT, _VOC_IGNORED, _DET_RIGHT, _DET_IGNORED = (np.uint8(1 << bit) for bit in range(4))

_DETECTION: dict[str, pa.DataType] = {
    "label": pa.string(),
    "score": pa.float32(),
    "image": pa.int64(),  # Orders equal scores.
    "hash": pa.uint64(),  # The image's key, for its weight in each replicate.
    "place": pa.uint32(),  # Among the detections of its image and class.
    "flags": pa.uint8(),  # The four bits above.
}
_TRUTH: dict[str, pa.DataType] = {"label": pa.string(), "hash": pa.uint64()}
DETECTIONS = pa.schema(_DETECTION)
"""A row a detection."""
TRUTHS = pa.schema(_TRUTH)
"""A row a truth that counts."""


def partial(predictions: pa.Table, truth: pa.Table, first_place: int = 0) -> DetectionPartial:
    """Match the detections of some images.

    ``predictions`` has ``key`` and ``objects``, ``truth`` ``image_id`` and ``objects``, in the same order
    and with the same names for a class; images whose truth is null must not be among them. Boxes are
    float64 pixels, x2 - x1 wide: what the development kits count as xmax - xmin + 1 (`sources.voc_xml`).
    ``first_place`` is the place of the first image among all: it orders equal scores where image ids are
    no numbers.

    Truths that are difficult, and crowds, are neither to be found nor wrong to find.
    """
    labels, excluded, usable = Labels(), Counter[str](), IOU_TYPES["boxes"].usable
    found, truths = (flatten_things(one["objects"], labels) for one in (predictions, truth))
    found, place = best_first(comparable(found, usable(found), excluded, "detections"))
    truths = by_group(comparable(truths, usable(truths), excluded, "true objects"))
    some = pairs(found, truths)
    overlap = iou_xywh(found.boxes_xywh[some.first], truths.boxes_xywh[some.second])
    flags = _by_voc(found, truths, some, overlap) | _by_det(found, truths, some, overlap)
    keys: list[Any] = predictions["key"].to_pylist()
    order, hashes = image_order(truth["image_id"], first_place), key_hashes(keys)
    names, counted = pa.array(labels.names, pa.string()), truths.take(~_left_out(truths))
    detections = [
        names.take(pa.array(found.label, pa.int64())),
        pa.array(found.score.astype(np.float32)),
        pa.array(order[found.image]),
        pa.array(hashes[found.image]),
        pa.array(place.astype(np.uint32)),
        pa.array(flags),
    ]
    rows = [names.take(pa.array(counted.label, pa.int64())), pa.array(hashes[counted.image])]
    return DetectionPartial(pa.table(detections, schema=DETECTIONS), pa.table(rows, schema=TRUTHS), excluded)


def merge(partials: Iterable[DetectionPartial], rows_in_memory: int = ROWS_IN_MEMORY) -> MergedRows:
    """Put partials together, in any order."""
    merged = MergedRows(DETECTIONS, TRUTHS, rows_in_memory)
    for one in partials:
        merged.add(one)
    return merged


def result(merged: MergedRows, apply: Map = here, intervals: bool = True) -> Evaluated:
    """Rank class by class, which ``apply`` may do side by side, and average over the classes with truths.

    ``VOC2007_AP50`` is the mean of the greatest precision at or beyond the recalls 0, 0.1 … 1;
    ``VOC2010_AP50`` the area under that precision (VOC2010 development kit, ``VOCap.m``), and so is
    ``DET_AP``. The table ``voc_classes`` has a row a class.
    """
    replicates = count_replicates(merged.detections.rows) if intervals else 0
    ranked = list(apply(bound(_rank, replicates), rankings(merged)))
    metrics = {name: _mean(ranked, number) for number, name in enumerate(NAMES)}
    return Evaluated(metrics, {"voc_classes": _classes(ranked)})


class VocMetric(Metric):
    """Boxes judged by boxes, difficult ones left out; the `CocoMetric` of boxes has the notes."""

    answer = "objects"

    def applies(self, schemas: Schemas) -> bool:
        """Say whether there are boxes, and it is known which objects are difficult."""
        has_boxes = "box" in object_fields(schemas.predictions)
        return schemas.difficult and has_boxes and not object_fields(schemas.predictions, "boxes")

    def partial(self, piece: Piece) -> DetectionPartial:
        """Match the detections of some images."""
        return partial(piece.predictions, piece.truth, piece.first_place)

    def merging(self) -> MergedRows:
        """Return what takes the rows by class."""
        return merge([])

    def result(self, merged: MergedRows, apply: Map) -> Evaluated:
        """Rank class by class."""
        return result(merged, apply)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """One class's numbers (3,), in the order of `NAMES`, and its replicates (R, 3)."""

    label: str
    detections: int
    truths: int
    values: NDArray[np.float64]
    replicates: NDArray[np.float64]


def _left_out(truths: Objects) -> NDArray[np.bool_]:
    return truths.difficult | truths.crowd


def _by_voc(
    found: Objects, truths: Objects, some: ObjectPairs, overlap: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return VOC's flags (VOC2012 development kit, ``VOCevaldet.m``).

    A detection stands for the truth of its class that it overlaps most, of equal ones the first. It is
    right if that is at least 0.5 and no better detection stands for the same.
    """
    ordered = np.lexsort((some.second, -overlap, some.first))
    most = ordered[np.diff(some.first, prepend=-1) != 0]
    most = most[overlap[most] >= _ENOUGH]
    first, second = some.first[most], some.second[most]
    _, best = np.unique(second, return_index=True)
    flags = np.zeros(len(found), np.uint8)
    flags[first[best]] = _VOC_RIGHT
    flags[first[_left_out(truths)[second]]] = _VOC_IGNORED
    return flags


def _by_det(
    found: Objects, truths: Objects, some: ObjectPairs, overlap: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return ImageNet-DET's flags (ILSVRC2015 development kit, ``eval_detection.m``).

    A truth of w x h pixels is found from an IoU of min(0.5, wh / ((w + 10)(h + 10))) on. A detection takes
    the truth that it overlaps most, of equal ones the first, among those that it finds and that no better
    one has taken. Of truths that are left out the kit knows none: they are taken after all others, and
    again and again.
    """
    width, height = np.maximum(truths.boxes_xywh[:, 2:], 0).T
    least = np.minimum(_ENOUGH, width * height / ((width + _MARGIN) * (height + _MARGIN)))
    enough = (overlap > 0) & (overlap >= least[some.second])
    first, second = some.first[enough], some.second[enough]
    # `match` takes the last of equals: counted backwards, that is the first.
    backwards, left_out = ObjectPairs(first, len(truths) - 1 - second), _left_out(truths)[::-1]
    candidates = Candidates(backwards, overlap[enough], group_numbers(found)[first])
    matched, ignored = match(candidates, len(found), left_out[:, None], left_out, [0.0])
    flags = np.where(ignored, _DET_IGNORED, np.where(matched, _DET_RIGHT, np.uint8(0)))
    return flags.reshape(len(found))


def _rank(replicates: int, rows: Ranking) -> _Ranked:
    names = ("score", "image", "hash", "place", "flags")
    score, image, hashes, place, flags = (rows.detections[name].to_numpy() for name in names)
    order = np.lexsort((place, image, -score.astype(np.float64)))
    hashes, flags, count = hashes[order], flags[order], rows.truths.num_rows
    once = np.ones((len(order), 1), np.uint8)
    found = [
        _precisions(flags, weights, of_truths.sum(axis=0, dtype=np.int64))
        for weights, of_truths in weighted(hashes, rows.truths["hash"].to_numpy(), replicates)
    ]
    return _Ranked(
        label=rows.label,
        detections=len(order),
        truths=count,
        values=_precisions(flags, once, np.array([count]))[0],
        replicates=np.concatenate([np.zeros((0, len(NAMES))), *found]),
    )


def _precisions(
    flags: NDArray[np.uint8], weights: NDArray[np.uint8], totals: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the class's numbers with each image counted ``weights`` (n, r) times, (r, 3).

    ``totals`` (r,) are the truths; where there are none, the numbers are NaN.
    """
    numbers = []
    for right, ignored in ((_VOC_RIGHT, _VOC_IGNORED), (_DET_RIGHT, _DET_IGNORED)):
        rows = np.flatnonzero(flags & right)
        counted = np.cumsum(weights * ((flags & ignored) == 0)[:, None], axis=0, dtype=np.int32)[rows]
        found, greatest = envelope(weights[rows], counted)
        area = (greatest * weights[rows]).sum(axis=0) / np.maximum(totals, 1)
        numbers += [interpolated(found, greatest, totals, ELEVEN), area]
    seven, ten, _, det = numbers
    return np.where(totals[:, None] > 0, np.stack([seven, ten, det], axis=1), np.nan)


def _mean(ranked: list[_Ranked], number: int) -> Value:
    values, replicates = [one.values[number] for one in ranked], [one.replicates[:, number] for one in ranked]
    return mean_over_classes(
        values, replicates, sum(one.truths for one in ranked), "no ground truth that counts"
    )


def _classes(ranked: list[_Ranked]) -> pa.Table:
    rows = [
        {
            "label": one.label,
            "truths": one.truths,
            "detections": one.detections,
            **dict(zip(NAMES, one.values, strict=True)),
        }
        for one in ranked
    ]
    columns: dict[str, pa.DataType] = {"label": pa.string(), "truths": pa.int64(), "detections": pa.int64()}
    return pa.Table.from_pylist(rows, pa.schema({**columns, **dict.fromkeys(NAMES, pa.float64())}))
