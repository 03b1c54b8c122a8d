"""A class for the whole image, in reports: its name with its score, and whether it is the true one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.humanize import percent
from cnnbatch.metrics import Value
from cnnbatch.report.answers.entry import (
    WHERE,
    AnswerReport,
    ClassLayout,
    EvaluationTables,
    Guess,
    MistakeWords,
)


class LabelReport(AnswerReport):
    """The columns ``label``, ``score`` and ``top``."""

    columns = ("score", "top")
    score_column = "score"
    is_confused = True

    def caption(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return ``dog, 97 %``."""
        score = row.get("score")
        return str(answer) if score is None else f"{answer}, {percent(score)}"

    def predicted(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return ``dog (0.97)``."""
        score = row.get("score")
        return str(answer) if score is None else f"{answer} ({score:.2f})"

    def line(self, answer: Any, row: Mapping[str, Any]) -> str:
        """Return ``dog 0.97``."""
        score = row.get("score")
        return str(answer) if score is None else f"{answer} {score:.2f}"

    def ranked(self, row: Mapping[str, Any]) -> Sequence[Guess]:
        """Return the best labels, or the one that there is."""
        return tuple(Guess(str(one["label"]), one.get("score")) for one in row.get("top") or [row])

    def is_right(self, answer: Any, truth: Any) -> bool | None:
        """Say whether the best label is the true one."""
        return str(answer) == str(truth)

    def labels(self, answers: pa.Array[Any]) -> Counter[str]:
        """Count the images by their best label."""
        found = pc.value_counts(answers.drop_null())
        labels, counts = found.field("values"), found.field("counts")
        return Counter(dict(zip(map(str, labels.to_pylist()), counts.to_pylist(), strict=True)))

    def label_names(self, truth: Any) -> Iterable[str]:
        """Return the one class."""
        return (str(truth),)

    def mistake_words(self, tables: EvaluationTables) -> MistakeWords:
        """Return that they are wrong labels."""
        return MistakeWords("Images with a wrong label", "true class")

    def mistakes(self, tables: EvaluationTables) -> Iterator[pa.Table]:
        """Yield the images with a wrong label."""
        for batch in tables.images([*WHERE, "label", "score", "predicted", "right"]):
            rows = pa.Table.from_batches([batch])
            wrong: Any = pc.and_(pc.invert(rows["right"]), rows["predicted"].is_valid())
            yield rows.filter(wrong)

    def class_layouts(self, metrics: Mapping[str, Value]) -> Sequence[ClassLayout]:
        """Return the one table."""
        return (ClassLayout("classes", "", "Images", "F1", ("precision", "recall")),)
