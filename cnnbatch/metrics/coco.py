"""COCO's numbers for boxes, masks and keypoints, equal to pycocotools' (Lin et al. 2014; COCOeval).

A partial has a row for each detection, since average precision needs every score in one order; a class
is ranked at a time (`cnnbatch.metrics.average_precision`), and rows wait on disk. Memory: the largest class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial as bound
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, Value, per_image
from cnnbatch.metrics.average_precision import (
    CURVES,
    DETECTIONS,
    TRUTHS,
    Ranked,
    count_replicates,
    mean_over_classes,
    rank,
    rankings,
)
from cnnbatch.metrics.by_class import ROWS_IN_MEMORY, DetectionPartial, MergedRows
from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.metrics.iou_types import IouType
from cnnbatch.metrics.matching import Candidates, match
from cnnbatch.metrics.objects import (
    Labels,
    best_first,
    by_group,
    comparable,
    flatten_things,
    group_numbers,
    image_order,
    object_fields,
    pairs,
)
from cnnbatch.types import Map, here

BOXES = "boxes"
"""The column of boxes, where ``objects`` are of another network."""


@dataclass(frozen=True, slots=True)
class CocoPartial(DetectionPartial):
    """What some images contribute: rows as `ranking` reads them, and a row an image (`per_image.SCHEMA`)."""

    images: pa.Table


def partial(iou_type: IouType, predictions: pa.Table, truth: pa.Table, first_place: int = 0) -> CocoPartial:
    """Match the detections of some images.

    ``predictions`` has ``key`` and ``objects``, ``truth`` ``image_id`` and ``objects``, in the same order
    and with the same names for a class; images whose truth is null must not be among them.
    ``first_place`` is the place of the first image among all: it orders equal scores where the truth's
    image ids are no numbers.
    """
    labels, excluded = Labels(), Counter[str]()
    found, truths = (flatten_things(one["objects"], labels) for one in (predictions, truth))
    sigmas = found.sigmas or truths.sigmas
    found, truths = replace(found, sigmas=sigmas), replace(truths, sigmas=sigmas)
    found, place = best_first(comparable(found, iou_type.usable(found), excluded, "detections"))
    found, place = found.take(place < iou_type.most[-1]), place[place < iou_type.most[-1]]
    truths = by_group(comparable(truths, iou_type.usable(truths), excluded, "true objects"))
    areas = iou_type.detection_area(found)
    ignored = iou_type.ignored(truths)[:, None] | _outside(iou_type, truths.area)
    some = pairs(found, truths)
    candidates = Candidates(some, iou_type.overlap(found, truths, some), group_numbers(found)[some.first])
    matched, to_ignored = match(candidates, len(found), ignored, truths.crowd)
    to_ignored |= ~matched & _outside(iou_type, areas)[:, None, :]
    keys: list[Any] = predictions["key"].to_pylist()
    order, hashes = image_order(truth["image_id"], first_place), key_hashes(keys)
    names = pa.array(labels.names, pa.string())
    detections = pa.table(
        [
            names.take(pa.array(found.label, pa.int64())),
            pa.array(found.score.astype(np.float32)),
            pa.array(order[found.image]),
            pa.array(hashes[found.image]),
            pa.array(place.astype(np.uint8)),
            pa.array(_bits(matched)),
            pa.array(_bits(to_ignored)),
        ],
        schema=DETECTIONS,
    )
    labels_of_truths = names.take(pa.array(truths.label, pa.int64()))
    counted = [labels_of_truths, pa.array(hashes[truths.image]), pa.array(_bits(~ignored))]
    hits = (matched & ~to_ignored)[:, :, 0], to_ignored[:, :, 0]
    images = per_image.table(predictions["key"], labels.names, found, truths.take(~ignored[:, 0]), *hits)
    return CocoPartial(detections, pa.table(counted, schema=TRUTHS), excluded, images)


class MergedCoco(MergedRows):
    """Partials of one `IouType` put together."""

    def __init__(self, iou_type: IouType, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        super().__init__(DETECTIONS, TRUTHS, rows_in_memory)
        self.iou_type = iou_type


def merge(
    iou_type: IouType, partials: Iterable[CocoPartial], rows_in_memory: int = ROWS_IN_MEMORY
) -> MergedCoco:
    """Put partials together, in any order."""
    merged = MergedCoco(iou_type, rows_in_memory)
    for one in partials:
        merged.add(one)
    return merged


def result(merged: MergedCoco, apply: Map = here, intervals: bool = True) -> Evaluated:
    """Rank class by class, which ``apply`` may do side by side, and average over the classes.

    Values are -1 in pycocotools where no class has a truth; here they are None.
    """
    iou_type = merged.iou_type
    replicates = count_replicates(merged.detections.rows) if intervals else 0
    ranked: list[Ranked] = list(apply(bound(rank, iou_type, replicates), rankings(merged)))
    metrics = {stat.name: _mean(ranked, number) for number, stat in enumerate(iou_type.stats)}
    tables = {"classes": _classes(iou_type, ranked), "pr_curves": _curves(ranked)}
    return Evaluated(metrics, {iou_type.prefix + name: table for name, table in tables.items()})


class CocoMetric(Metric):
    """Objects judged by objects, by their boxes, masks or keypoints.

    ``column`` is that of the predictions. Where they have boxes in a column of its own, ``boxes``, these are
    the ones that are judged, not those around the masks in ``objects``.
    """

    answer = "objects"

    def __init__(self, iou_type: IouType, column: str = "objects") -> None:
        self._type, self._column = iou_type, column

    def applies(self, schemas: Schemas) -> bool:
        """Say whether both have the field that is compared."""
        compared, said = self._type.field, schemas.predictions
        elsewhere = compared == "box" in object_fields(said, BOXES) and self._column != BOXES
        return compared in object_fields(said, self._column) & object_fields(schemas.truth) and not elsewhere

    def columns(self, predictions: pa.Schema) -> Sequence[str]:
        """Return which column is judged."""
        return [self._column]

    def partial(self, piece: Piece) -> CocoPartial:
        """Match the detections of some images."""
        said = pa.table({"key": piece.predictions["key"], "objects": piece.predictions[self._column]})
        return partial(self._type, said, piece.truth, piece.first_place)

    def merging(self) -> MergedCoco:
        """Return what takes the rows by class."""
        return MergedCoco(self._type)

    def result(self, merged: MergedCoco, apply: Map) -> Evaluated:
        """Rank class by class."""
        return result(merged, apply)

    def images(self, partial: CocoPartial) -> pa.Table:
        """Return a row an image (`per_image.SCHEMA`), its columns with the prefix of the numbers."""
        names = partial.images.schema.names
        return partial.images.rename_columns([n if n == "key" else self._type.prefix + n for n in names])

    def notes(self, partial: CocoPartial) -> Counter[str]:
        """Return how many objects were left out, by reason."""
        return partial.excluded


def _mean(ranked: list[Ranked], number: int) -> Value:
    values, replicates = [one.values[number] for one in ranked], [one.replicates[:, number] for one in ranked]
    count = sum(one.counts[number] for one in ranked)
    return mean_over_classes(values, replicates, count, "no object of this size in the ground truth")


def _classes(iou_type: IouType, ranked: list[Ranked]) -> pa.Table:
    """Return a row a class: its numbers, and the score threshold with the best F1 at IoU 0.5."""
    rows = [
        {
            "label": one.label,
            "truths": one.counts[0],
            "detections": one.detections,
            **{
                stat.name: None if np.isnan(value) else value
                for stat, value in zip(iou_type.stats, one.values, strict=True)
            },
            **one.operating,
        }
        for one in ranked
    ]
    numbers = [*(stat.name for stat in iou_type.stats), "threshold", "precision", "recall", "f1"]
    columns: dict[str, pa.DataType] = {"label": pa.string(), "truths": pa.int64(), "detections": pa.int64()}
    return pa.Table.from_pylist(rows, pa.schema({**columns, **dict.fromkeys(numbers, pa.float64())}))


def _curves(ranked: list[Ranked]) -> pa.Table:
    return pa.concat_tables([CURVES.empty_table(), *(one.curves for one in ranked)])


def _outside(iou_type: IouType, area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each object and range of areas whether it is outside, (n, A)."""
    low, high = np.array(iou_type.ranges).T
    outside: NDArray[np.bool_] = (area[:, None] < low) | (area[:, None] > high)
    return outside


def _bits(flags: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack all but the first dimension into one number a row."""
    cells = int(np.prod(flags.shape[1:]))
    padded = np.zeros((len(flags), 64), np.bool_)
    padded[:, :cells] = flags.reshape(len(flags), cells)
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64).ravel()
