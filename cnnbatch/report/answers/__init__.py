"""The kinds of answer that reports show, by the names of their columns.

An output may have several. Of a kind without an entry a report has the pictures, without captions.
"""

from __future__ import annotations

from collections.abc import Iterable

from cnnbatch.config.entries import Entries, as_instance
from cnnbatch.report.answers.boxes import BoxesReport
from cnnbatch.report.answers.entry import AnswerReport
from cnnbatch.report.answers.label import LabelReport
from cnnbatch.report.answers.map import MapReport
from cnnbatch.report.answers.objects import ObjectsReport

ANSWERS: Entries[AnswerReport | type[AnswerReport]] = Entries(
    "report",
    {"label": LabelReport, "boxes": BoxesReport, "map": MapReport, "objects": ObjectsReport},
    AnswerReport,
)
"""Where an output has several, the first comes first."""


def answers_among(columns: Iterable[str]) -> dict[str, AnswerReport]:
    """Return the entries of the kinds of answer that are among ``columns``."""
    return {name: as_instance(ANSWERS[name]) for name in ANSWERS.among(columns)}


def answer_report(kind: str | None) -> AnswerReport | None:
    """Return the entry of a kind of answer; None where there is none."""
    return None if kind is None else answers_among([kind]).get(kind)
