"""How far two outputs say the same of the same images: labels that are equal, boxes that lie alike.

An image that failed in only one of them counts as a disagreement, one that failed in both not at all.
Only sums are kept, and the images that differ most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.boxes import match, others
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import REPLICATES, percentiles, poisson_weights, wilson
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.metrics.objects import Labels, Objects, by_group, comparable, flatten

LISTED = 1000
"""Images that are listed: so many that failed in only one output, and so many others."""

_SAID = ("label", "score")


@dataclass(frozen=True, slots=True)
class ClassShift:
    """A class in A and in B: how often it was predicted, and the mean score; None without one."""

    label: str
    count_a: int
    count_b: int
    score_a: float | None
    score_b: float | None


@dataclass(frozen=True, slots=True)
class LabelChange:
    """How often A's label ``before`` is ``after`` in B."""

    before: str
    after: str
    count: int


class Measure(ABC):
    """Compares one column of both outputs.

    ``changes`` counts pairs of different labels, by their numbers; ``excluded`` what can't be compared.
    """

    def __init__(self) -> None:
        self.changes, self.excluded = Counter[tuple[int, int]](), Counter[str]()
        self.labels, self.classes = Labels(), (_Sums(), _Sums())
        self.images = self.alike = 0

    @abstractmethod
    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images, row beside row; return a row for each with ``differs``, ``weight`` and what to list.

        ``failed`` (N,) says which of them failed in both.
        """

    @abstractmethod
    def agreement(self) -> Value:
        """Return the share of what is the same."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Return what the agreement stands on."""

    def shifts(self) -> list[ClassShift]:
        """Return the classes by how much their counts differ."""
        found = []
        for number, label in enumerate(self.labels.names):
            (count_a, score_a), (count_b, score_b) = (sums.of(number) for sums in self.classes)
            if count_a or count_b:
                found.append(ClassShift(label, count_a, count_b, score_a, score_b))
        return sorted(found, key=lambda one: (-abs(one.count_b - one.count_a), -one.count_a, one.label))

    def label_changes(self) -> list[LabelChange]:
        """Return which label became which, the most frequent first."""
        names = self.labels.names
        found = [LabelChange(names[one], names[other], n) for (one, other), n in self.changes.items()]
        return sorted(found, key=lambda one: (-one.count, one.before, one.after))

    def count_changes(self, before: NDArray[np.int64], after: NDArray[np.int64]) -> None:
        """Count pairs of labels, (n,) each."""
        found, counts = np.unique(np.stack([before, after]), axis=1, return_counts=True)
        self.changes.update(dict(zip(map(tuple, found.T.tolist()), counts.tolist(), strict=True)))

    def count_images(self, differs: NDArray[np.bool_], failed: NDArray[np.bool_]) -> None:
        """Count images, but those that failed in both, and those of them that are alike."""
        self.images += int((~failed).sum())
        self.alike += int((~differs & ~failed).sum())


class Tally:
    """What is known of the images that both outputs have; `add` takes more of them in."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.images = self.failed_in_both = self.other_etags = 0
        self.failed_a, self.failed_b = Counter[str](), Counter[str]()
        self._failures, self._differing = Largest(LISTED), Largest(LISTED)

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch) -> None:
        """Take images in, `pairing.ROWS` of A beside those of B."""
        failed_a, failed_b = _flags(a["code"].is_valid()), _flags(b["code"].is_valid())
        self.images += a.num_rows
        self.failed_in_both += int((failed_a & failed_b).sum())
        self.failed_a.update(_words(a["code"].filter(pa.array(failed_a & ~failed_b))))
        self.failed_b.update(_words(b["code"].filter(pa.array(failed_b & ~failed_a))))
        changed: Any = pc.not_equal(a["etag"], b["etag"])
        self.other_etags += pc.sum(changed).as_py() or 0
        rows = _with_places(a, b, self.measure.add(a, b, failed_a & failed_b))
        self._failures.add(rows.filter(pa.array(failed_a ^ failed_b)))
        self._differing.add(rows.filter(pc.and_(rows["differs"], pa.array(~failed_a & ~failed_b))))

    def disagreements(self) -> pa.Table:
        """Return the images to look at: what failed in only one output, then the largest differences."""
        tables = [one.rows for one in (self._failures, self._differing) if one.rows is not None]
        return pa.concat_tables(tables).drop_columns(["differs"])


class LabelMeasure(Measure):
    """One label an image: the share that is equal, with Wilson's interval.

    What weighs most are two different labels of high scores: ``weight`` is the lower of the two.
    """

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images; see `Measure`."""
        first, second = (self.labels.numbers(batch["label"]) for batch in (a, b))
        scores = [_floats(batch["score"]) for batch in (a, b)]
        for sums, numbers, score in zip(self.classes, (first, second), scores, strict=True):
            sums.add(numbers[numbers >= 0], score[numbers >= 0])
        differs = first != second
        changed = differs & (first >= 0) & (second >= 0)
        self.count_changes(first[changed], second[changed])
        self.count_images(differs, failed)
        weight = np.nan_to_num(np.minimum(*scores))
        said = {f"{name}_{side}": batch[name] for side, batch in (("a", a), ("b", b)) for name in _SAID}
        return pa.table({"differs": pa.array(differs), "weight": pa.array(weight), **said})

    def agreement(self) -> Value:
        """Return the share of equal labels among the images that did not fail in both."""
        if not self.images:
            return Value(None, reason="all images failed in both")
        low, high = wilson(self.alike, self.images)
        return Value(self.alike / self.images, low, high, self.images)

    def counts(self) -> dict[str, int]:
        """Return the numbers of images and of equal labels."""
        return {"compared": self.images, "equal": self.alike}


class ObjectMeasure(Measure):
    """Boxes of one label that lie alike: 2 · matched / (boxes of A + boxes of B), Dice's coefficient.

    Dice: Measures of the amount of ecologic association between species (1945). The interval is the Poisson
    bootstrap's over images. What weighs most are unmatched boxes: ``weight`` is the sum of their scores in
    A and in B, where no score counts as 1. An image's own ``agreement`` is 1 where neither has a box.
    """

    def __init__(self, iou: float) -> None:
        super().__init__()
        self._iou = iou
        # 2 · matched, boxes of A, boxes of B; of the images as they are, then of each replicate.
        self._sums = np.zeros((3, 1 + REPLICATES), np.int64)

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images; see `Measure`."""
        first, second = self._boxes(a, 0), self._boxes(b, 1)
        same, other = match(first, second, self._iou)
        self.count_changes(first.label[other.first], second.label[other.second])
        images = (first.image[same.first], first.image, second.image)
        matched, boxes_a, boxes_b = (np.bincount(each, minlength=len(failed)) for each in images)
        twice, both = 2 * matched, boxes_a + boxes_b
        weights = np.insert(poisson_weights(_words(a["key"])).astype(np.int64), 0, 1, axis=1)
        self._sums += np.stack([twice, boxes_a, boxes_b]) @ weights
        lost = _flags(a["code"].is_valid()) | _flags(b["code"].is_valid())
        differs = (twice != both) | lost
        self.count_images(differs, failed)
        own = np.divide(twice, both, out=np.ones(len(both)), where=both > 0)
        columns = {
            "differs": pa.array(differs),
            "weight": pa.array(_unmatched(first, same.first, a) + _unmatched(second, same.second, b)),
            "agreement": pa.array(own, mask=lost),
        }
        return pa.table({**columns, "boxes_a": boxes_a, "boxes_b": boxes_b, "matched": matched})

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
        twice, boxes_a, boxes_b = self._sums[:, 0].tolist()
        images = {"compared": self.images, "all_boxes_match": self.alike}
        boxes = {"boxes_a": boxes_a, "boxes_b": boxes_b, "matched": twice // 2}
        return {**images, **boxes, "matched_with_another_label": self.changes.total()}

    def _boxes(self, batch: pa.RecordBatch, side: int) -> Objects:
        """Return the boxes that can be compared, by image and class; those left out are counted."""
        found = flatten(pa.chunked_array([batch["objects"]]), self.labels)
        usable = IOU_TYPES["boxes"].usable(found)
        found = by_group(comparable(found, usable, self.excluded, f"boxes of {'AB'[side]}"))
        self.classes[side].add(found.label, _scores(found))
        return found


def _unmatched(found: Objects, matched: NDArray[np.int64], batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Return for each image the sum of the scores of its boxes that are not matched, (N,)."""
    rest = others(len(found), matched)
    scores = np.nan_to_num(_scores(found)[rest], nan=1.0)
    return np.asarray(np.bincount(found.image[rest], scores, batch.num_rows), np.float64)


class _Sums:
    """Of each class the number of its predictions, of their scores, and the sum of these, (3, C)."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, 0))

    def add(self, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        size = max(self._sums.shape[1], int(labels.max(initial=-1)) + 1)
        known = ~np.isnan(scores)
        new = [np.bincount(labels, weights, size) for weights in (None, known, np.nan_to_num(scores))]
        self._sums = np.pad(self._sums, ((0, 0), (0, size - self._sums.shape[1]))) + new

    def of(self, label: int) -> tuple[int, float | None]:
        """Return how often a class was predicted, and its mean score."""
        if label >= self._sums.shape[1]:
            return 0, None
        count, scored, total = self._sums[:, label].tolist()
        return int(count), total / scored if scored else None


def _with_places(a: pa.RecordBatch, b: pa.RecordBatch, rows: pa.Table) -> pa.Table:
    """Return rows about images with which images they are, and why they failed."""
    places = {"key": a["key"], "uri": a["uri"], "code_a": a["code"], "code_b": b["code"]}
    for name in ("part", "row"):
        places |= {f"{name}_a": a[name], f"{name}_b": b[name]}
    return pa.table({**places, **{name: rows[name] for name in rows.schema.names}})


def _scores(found: Objects) -> NDArray[np.float64]:
    """Return the scores of objects, NaN where there is none."""
    return _floats(pc.struct_field(found.struct, "score"))


def _floats(column: Any) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _words(column: Any) -> list[str]:
    words: list[str] = column.to_pylist()
    return words


def _flags(column: Any) -> NDArray[np.bool_]:
    """Return a column without nulls as bool (N,)."""
    values: NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return values


class Largest:
    """At most ``size`` rows of the greatest ``weight``, of equal ones by ``key``; ``rows`` are in order."""

    def __init__(self, size: int) -> None:
        self.rows: pa.Table | None = None
        self._size = size

    def add(self, rows: pa.Table) -> None:
        """Take rows with the columns ``weight`` and ``key`` in; all calls have the same columns."""
        both = rows if self.rows is None else pa.concat_tables([self.rows, rows])
        order: Any = pc.sort_indices(both, [("weight", "descending"), ("key", "ascending")])
        self.rows = both.take(order[: self._size])  # A copy: a slice would hold the whole batch.
