"""What every kind of answer has to say of a comparison: the base class of the entries in `measures`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.options import CompareOptions
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import wilson
from cnnbatch.metrics.objects import Labels
from cnnbatch.output.reader import ROWS_IN_A_BATCH
from cnnbatch.report.answers.entry import NOTHING_MORE, AboutOutput


@dataclass(frozen=True, slots=True)
class ClassShift:
    """A class in A and in B: how often it was predicted, and the mean score; None without one.

    ``iou`` is that of its pixels in A and in B, None where pixels are not compared.
    """

    label: str
    count_a: int
    count_b: int
    score_a: float | None
    score_b: float | None
    iou: float | None = None


@dataclass(frozen=True, slots=True)
class LabelChange:
    """How often A's label ``before`` is ``after`` in B."""

    before: str
    after: str
    count: int


@dataclass(frozen=True, slots=True)
class ImageScore:
    """By which number of each image one output is better than the other.

    ``column`` of ``evaluation/images.parquet`` has the number, or yes and no. ``truth`` is the column there
    that differs where the ground truths of an image do, None where there is none; ``more`` are further
    columns that `listed` reads.
    """

    column: str
    truth: str | None = None
    less_is_better: bool = False
    more: Sequence[str] = ()

    @property
    def lead(self) -> str:
        """The sentence over the list of images that changed."""
        return f"By their {self.column}, the largest changes first."

    def listed(
        self, a: pa.RecordBatch, b: pa.RecordBatch, was: NDArray[np.float64], now: NDArray[np.float64]
    ) -> dict[str, Any]:
        """Return the columns that list images: what each was in ``a`` and is in ``b``, and its ``weight``."""
        return {"a": pa.array(was), "b": pa.array(now), "weight": np.abs(now - was).round(9)}

    def sentence(self, better: str, worse: str, same: str) -> str:
        """Return how many images changed, from these numbers as words."""
        return f"{better} images are better in B and {worse} worse, by their {self.column}; {same} are alike"


class Measure(ABC):
    """Compares one kind of answer, images of A beside the same images of B, and says how they agree.

    A subclass names the ``columns`` that it compares, with their types; one that an output lacks is null,
    but ``kind``, the column that an output has to have. ``leaves`` are the columns and fields that are read,
    all columns unless said. ``unit`` is what class shifts and label changes count, in words, and
    ``changes_lead`` the sentence over the changes. ``drawn``: the answer is drawn on each output's picture.
    ``shares`` names by metric the yes or no of each image that the metric is the share of, ``image_scores``
    by what an image is better or worse, the first that both evaluations have: columns of
    ``evaluation/images.parquet`` both.

    ``at_once`` is how many images are read at a time, ``about`` what their rows do not say, of both outputs.

    ``changes`` counts pairs of different labels, by their numbers; ``excluded`` what can't be compared.
    """

    columns: ClassVar[Mapping[str, pa.DataType]]
    leaves: ClassVar[Sequence[str]] = ()
    unit: ClassVar[str] = "Images"
    changes_lead: ClassVar[str] = "Images by their labels."
    drawn: ClassVar[bool] = False
    shares: ClassVar[Mapping[str, str]] = {}
    image_scores: ClassVar[Sequence[ImageScore]] = ()
    at_once: ClassVar[int] = ROWS_IN_A_BATCH
    about: tuple[AboutOutput, AboutOutput] = (NOTHING_MORE, NOTHING_MORE)

    def __init__(self, kind: str, options: CompareOptions) -> None:
        self.kind, self.options = kind, options
        self.changes, self.excluded = Counter[tuple[int, int]](), Counter[str]()
        self.labels, self.classes = Labels(), (ClassCounts(), ClassCounts())
        self.images = self.alike = 0

    @classmethod
    def of(cls, kind: str, options: CompareOptions, columns: Sequence[pa.DataType]) -> Measure:
        """Return the measure for both outputs' columns of the kind, which all fit."""
        return cls(kind, options)

    @classmethod
    def fits(cls, column: pa.DataType) -> bool:
        """Say whether the kind's column is of a type that can be compared."""
        return True

    def decode(self, column: Any) -> Any:
        """Return the kind's column, as it was read, in its type among ``columns``."""
        return as_type(column, self.columns[self.kind])

    @abstractmethod
    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images, row beside row; return a row for each with ``differs``, ``weight`` and what to list.

        ``failed`` (N,) says which of them failed in both. What is to be listed of one output alone ends in
        ``_a`` or ``_b``.
        """

    def agreement(self) -> Value:
        """Return the share of what is the same: of the images that did not fail in both, unless said."""
        if not self.images:
            return Value(None, reason="all images failed in both")
        low, high = wilson(self.alike, self.images)
        return Value(self.alike / self.images, low, high, self.images)

    def counts(self) -> dict[str, int]:
        """Return what the agreement stands on."""
        return {"compared": self.images, "equal": self.alike}

    def sentence(self) -> str:
        """Return what the agreement stands on, in words."""
        return f"{self.alike:,} of {self.images:,} images are alike"

    def settings(self) -> dict[str, float | None]:
        """Return the options that the agreement follows from; the others are None."""
        return {"iou": None, "score_threshold": None}

    def texts(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return what A and B say of a listed image, in words; empty where they say nothing."""
        return _text(row.get(f"{self.kind}_a")), _text(row.get(f"{self.kind}_b"))

    def shifts(self) -> list[ClassShift]:
        """Return the classes by how much their counts differ."""
        found = []
        for number, label in enumerate(self.labels.names):
            (count_a, score_a), (count_b, score_b) = (counts.of(number) for counts in self.classes)
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


class ClassCounts:
    """Of each class the number of its predictions, of their scores, and the sum of these, (3, C)."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, 0))

    def add(self, labels: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Count predictions of classes by their numbers; a score of NaN is none, (n,) each."""
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


def as_type(column: Any, type: pa.DataType) -> Any:
    """Return a column in a type; one of that type is not copied."""
    return column if column.type == type else column.cast(type)


def floats(column: Any) -> NDArray[np.float64]:
    """Return numbers, or 0 and 1 for no and yes, as float64 (N,); NaN where they are null."""
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def flags(column: Any) -> NDArray[np.bool_]:
    """Return a column without nulls as bool (N,)."""
    values: NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return values


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
