"""All that a page shows of an evaluation but its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnnbatch.report.classes import ClassTable, Confusion, Matrix, class_tables, confusion_matrix
from cnnbatch.report.context import ReportContext
from cnnbatch.report.curves import Titled, evaluation_charts
from cnnbatch.report.numbers import NumberGroup, Sliced, groups, meanings, notes, slices


@dataclass(frozen=True, slots=True)
class EvaluationSection:
    """What an output is worth by its truth, in words and charts; ``images`` have a truth."""

    images: int
    failed: int
    groups: Sequence[NumberGroup]
    meanings: Mapping[str, str]
    notes: Sequence[str]
    slices: Sequence[Sliced]
    tables: Sequence[ClassTable]
    matrix: Matrix | None
    confusions: Sequence[Confusion]
    charts: Sequence[Titled]


def evaluation_section(context: ReportContext) -> EvaluationSection | None:
    """Return what the evaluation says; None where there is none."""
    evaluation = context.evaluation
    if evaluation is None:
        return None
    matrix, confusions = confusion_matrix(context)
    return EvaluationSection(
        images=evaluation.images,
        failed=evaluation.failed,
        groups=groups(evaluation.metrics),
        meanings=meanings(evaluation.metrics),
        notes=notes(evaluation),
        slices=slices(evaluation),
        tables=class_tables(context, evaluation.metrics),
        matrix=matrix,
        confusions=confusions,
        charts=evaluation_charts(context, evaluation.metrics),
    )
