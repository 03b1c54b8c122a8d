"""How a training reads the ground truth of each kind of answer: which images teach, and what classes."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pyarrow as pa

from cnnbatch.config.entries import Entries, as_instance
from cnnbatch.truth import answer_of


class TrainingTruth:
    """How the ground truth of one kind of answer is read; on its own, as values without classes."""

    has_classes: ClassVar[bool] = False
    """Whether there are classes to learn, which are counted before the training begins."""
    one_class: ClassVar[bool] = False
    """Whether an image has one class, so that it can't teach or validate where that class is left out."""

    def known(self, values: pa.ChunkedArray[Any]) -> list[bool]:
        """Say of each image whether its truth is known, from the truth's column ``values``."""
        valid: Any = values.is_valid()
        return [bool(one) for one in valid.to_pylist()]

    def labels(self, values: pa.ChunkedArray[Any]) -> list[str | None]:
        """Return the class of each image; None where images have no class of their own."""
        return [None] * len(values)

    def objects(self, values: pa.ChunkedArray[Any]) -> Counter[str]:
        """Count the classes of what lies in the images; nothing where images have classes themselves."""
        return Counter()


class TrainingLabels(TrainingTruth):
    """One class an image."""

    has_classes = True
    one_class = True

    def labels(self, values: pa.ChunkedArray[Any]) -> list[str | None]:
        """Return the labels themselves."""
        found: list[str | None] = values.to_pylist()
        return found


class TrainingObjects(TrainingTruth):
    """Objects with classes; crowds and what is to be ignored do not teach."""

    has_classes = True

    def objects(self, values: pa.ChunkedArray[Any]) -> Counter[str]:
        """Count the labels of the objects that teach."""
        rows: list[Any] = values.to_pylist()
        return Counter(one["label"] for row in rows for one in row or () if _is_learned(one))


KINDS: Entries[TrainingTruth | type[TrainingTruth]] = Entries(
    "training", {"label": TrainingLabels, "objects": TrainingObjects}, TrainingTruth
)
"""By kind of answer; of another one the values are left to the task's recipe."""


def truth_kind(schema: pa.Schema) -> tuple[str, TrainingTruth]:
    """Return the kind of answer that a ground truth is of, and how it is read."""
    answer = answer_of(schema)
    return answer, as_instance(KINDS.get(answer, TrainingTruth))


def _is_learned(one: dict[str, Any]) -> bool:
    return one["label"] is not None and not one.get("crowd") and not one.get("ignore")
