"""Objects compared by their labels and their boxes, or their masks; embeddings stay unread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.boxes import match, others
from cnnbatch.evaluation.comparison.measure import ImageScore, Measure, as_type, flags, floats
from cnnbatch.evaluation.comparison.options import CompareOptions
from cnnbatch.evaluation.comparison.segments import SEGMENT, SegmentMeasure
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import REPLICATES, percentiles, poisson_weights
from cnnbatch.metrics.iou_types import IOU_TYPES, IouType
from cnnbatch.metrics.objects import Objects, by_group, comparable, flatten
from cnnbatch.truth import BOX, MASK

_FIELDS: list[pa.Field[Any]] = [
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("box", BOX),
]
OBJECTS = pa.list_(pa.struct(_FIELDS))
MASKED = pa.list_(pa.struct([*_FIELDS, pa.field("mask", MASK)]))


class ObjectMeasure(Measure):
    """Boxes of one label that lie alike: 2 · matched / (boxes of A + boxes of B), Dice's coefficient.

    Dice: Measures of the amount of ecologic association between species (1945). The interval is the Poisson
    bootstrap's over images. What weighs most are unmatched boxes: ``weight`` is the sum of their scores in
    A and in B, where no score counts as 1. An image's own ``agreement`` is 1 where neither has a box.
    """

    columns = {"objects": OBJECTS}
    leaves: ClassVar[Sequence[str]] = ("objects.label", "objects.score", "objects.box")
    iou_type: ClassVar[IouType] = IOU_TYPES["boxes"]
    unit = "Boxes"
    changes_lead = "Boxes that lie alike, by their labels."
    drawn = True
    image_scores = tuple(
        ImageScore(f"{prefix}AP", f"{prefix}truths") for prefix in ("", "mask_", "keypoint_")
    )

    def __init__(self, kind: str, options: CompareOptions) -> None:
        super().__init__(kind, options)
        # 2 · matched, boxes of A, boxes of B; of the images as they are, then of each replicate.
        self._sums = np.zeros((3, 1 + REPLICATES), np.int64)

    @classmethod
    def of(cls, kind: str, options: CompareOptions, columns: Sequence[pa.DataType]) -> Measure:
        """Return this one, or that of segments or of masks where both outputs have these."""
        both = set.intersection(*map(_fields, columns))
        if both.issuperset(SEGMENT):
            return SegmentMeasure(kind, options)
        return (MaskMeasure if "mask" in both else cls)(kind, options)

    @classmethod
    def fits(cls, column: pa.DataType) -> bool:
        """Say whether the objects have labels and boxes."""
        return {"label", "box"} <= _fields(column)

    def decode(self, column: Any) -> Any:
        """Return objects in the type of `columns`, without those that score too low.

        Those without a score count.
        """
        flat: Any = pc.list_flatten(column)
        wanted: Any = self.columns[self.kind]
        count, known = len(flat), _fields(column.type)
        fields = [
            as_type(pc.struct_field(flat, one.name), one.type)
            if one.name in known
            else pa.nulls(count, one.type)
            for one in wanted.value_type
        ]
        # In the scores' own precision: one that is written as 0.9 is not below 0.9.
        least = pa.scalar(self.options.score_threshold, pa.float32())
        kept = pc.fill_null(pc.greater_equal(fields[1], least), True)
        parents: Any = pc.list_parent_indices(column).filter(kept)
        ends = np.cumsum(np.bincount(parents.to_numpy(zero_copy_only=False), minlength=len(column)))
        objects = pa.StructArray.from_arrays(fields, fields=list(wanted.value_type)).filter(kept)
        offsets: Any = pa.array(np.concatenate([[0], ends]), pa.int32())
        return pa.ListArray.from_arrays(offsets, objects, mask=column.is_null())

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images; see `Measure`."""
        first, second = self._comparable(a, 0), self._comparable(b, 1)
        same, other = match(first, second, self.options.iou, self.iou_type.overlap)
        self.count_changes(first.label[other.first], second.label[other.second])
        images = (first.image[same.first], first.image, second.image)
        matched, boxes_a, boxes_b = (np.bincount(each, minlength=len(failed)) for each in images)
        twice, both = 2 * matched, boxes_a + boxes_b
        keys: list[Any] = a["key"].to_pylist()
        weights = np.insert(poisson_weights(keys).astype(np.int64), 0, 1, axis=1)
        self._sums += np.stack([twice, boxes_a, boxes_b]) @ weights
        lost = flags(a["code"].is_valid()) | flags(b["code"].is_valid())
        differs = (twice != both) | lost
        self.count_images(differs, failed)
        own = np.divide(twice, both, out=np.ones(len(both)), where=both > 0)
        columns = {
            "differs": pa.array(differs),
            "weight": pa.array(_unmatched(first, same.first, a) + _unmatched(second, same.second, b)),
            "agreement": pa.array(own, mask=lost),
        }
        counts = {self._of("a"): boxes_a, self._of("b"): boxes_b, "matched": matched}
        return pa.table({**columns, **counts})

    def agreement(self) -> Value:
        """Return the agreement over all boxes; 1 where there is none at all."""
        twice, boxes = self._sums[0], self._sums[1:].sum(axis=0)
        if not boxes[0]:
            return Value(1.0, count=self.images)
        shares = np.divide(twice, boxes, out=np.full(boxes.shape, np.nan), where=boxes > 0)
        low, high = percentiles(shares[1:])
        return Value(float(shares[0]), low, high, self.images)

    def counts(self) -> dict[str, int]:
        """Return the numbers of images, of those whose boxes all match, and of boxes."""
        twice, a, b = self._sums[:, 0].tolist()
        images = {"compared": self.images, f"all_{self.unit.lower()}_match": self.alike}
        boxes = {self._of("a"): a, self._of("b"): b, "matched": twice // 2}
        return {**images, **boxes, "matched_with_another_label": self.changes.total()}

    def sentence(self) -> str:
        """Return what the agreement stands on, in words."""
        counts = {name: f"{count:,}" for name, count in self.counts().items()}
        return (
            f"{counts['matched']} {self.iou_type.name} match of {counts[self._of('a')]} in A and "
            f"{counts[self._of('b')]} in B, "
            f"{counts['matched_with_another_label']} more with another label"
        )

    def settings(self) -> dict[str, float | None]:
        """Return both options: the agreement follows from them."""
        return {"iou": self.options.iou, "score_threshold": self.options.score_threshold}

    def _of(self, side: str) -> str:
        """Return the name of the count of one output's objects."""
        return f"{self.unit.lower()}_{side}"

    def _comparable(self, batch: pa.RecordBatch, side: int) -> Objects:
        """Return the objects that can be compared, by image and class; those left out are counted."""
        found = flatten(pa.chunked_array([batch[self.kind]]), self.labels)
        usable, what = self.iou_type.usable(found), f"{self.unit.lower()} of {'AB'[side]}"
        found = by_group(comparable(found, usable, self.excluded, what))
        self.classes[side].add(found.label, _scores(found))
        return found


class MaskMeasure(ObjectMeasure):
    """The same of objects with masks, which lie alike where their masks do."""

    columns = {"objects": MASKED}
    leaves = (*ObjectMeasure.leaves, "objects.mask")
    iou_type = IOU_TYPES["masks"]
    unit = "Objects"
    changes_lead = "Objects whose masks lie alike, by their labels."
    at_once = 256  # of images: masks are large, and pycocotools takes them as objects of Python


class BoxMeasure(ObjectMeasure):
    """The column ``boxes`` of outputs that have objects with masks, too."""

    columns = {"boxes": OBJECTS}
    leaves = ("boxes.label", "boxes.score", "boxes.box")
    image_scores = (ImageScore("AP", "truths"),)


def _unmatched(found: Objects, matched: NDArray[np.int64], batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Return for each image the sum of the scores of its boxes that are not matched, (N,)."""
    rest = others(len(found), matched)
    scores = np.nan_to_num(_scores(found)[rest], nan=1.0)
    return np.asarray(np.bincount(found.image[rest], scores, batch.num_rows), np.float64)


def _scores(found: Objects) -> NDArray[np.float64]:
    """Return the scores of objects, NaN where there is none."""
    return floats(pc.struct_field(found.struct, "score"))


def _fields(objects: pa.DataType) -> set[str]:
    """Return the fields that a list has for each element; none where it is no list of structures."""
    lists = pa.types.is_list(objects) or pa.types.is_large_list(objects)
    inner: Any = objects.value_type if lists else objects  # type: ignore[attr-defined]
    return {one.name for one in inner} if pa.types.is_struct(inner) else set()
