"""Boxes in reports, where they have a column of their own beside objects with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnbatch.metrics import Value
from cnnbatch.report.answers.entry import AboutTruth, ClassLayout, EvaluationTables
from cnnbatch.report.answers.objects import ObjectsReport


class BoxesReport(ObjectsReport):
    """The column ``boxes``, judged by the boxes of the same objects as the column ``objects``."""

    def title(self, answer: Any) -> str:
        """Return the name of this view."""
        return "Detection"

    def truth_of_objects(self, row: Mapping[str, Any], about: AboutTruth) -> tuple[Mapping[str, Any], ...]:
        """Return the true objects without their masks."""
        things = self.truth(row["objects"], about)
        return tuple({name: value for name, value in one.items() if name != "mask"} for one in things)

    def foremost(self, tables: EvaluationTables) -> str:
        """Return that boxes are judged."""
        return ""

    def class_layouts(self, metrics: Mapping[str, Value]) -> Sequence[ClassLayout]:
        """Return none: those of the column ``objects`` have the table of boxes, too."""
        return ()
