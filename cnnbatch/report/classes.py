"""What the evaluation says of each class, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.humanize import number
from cnnbatch.metrics import Value
from cnnbatch.report.answers.entry import AnswerReport, ClassLayout
from cnnbatch.report.context import ReportContext
from cnnbatch.report.numbers import share

MOST_OPEN = 20
"""Classes that a table shows at first; the rest, up to `MOST_ROWS`, can be opened."""
MOST_ROWS = 1000
MOST_IN_MATRIX = 20
MOST_CONFUSIONS = 20


class ClassRow(NamedTuple):
    """A class: its truths, its main number with its share of the bar, and further numbers."""

    label: str
    truths: str
    main: str
    share: float
    others: Sequence[str]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """A table of classes, those with most truths first; ``count`` is how many there are."""

    how: str
    names: Sequence[str]
    rows: Sequence[ClassRow]
    count: int


class Cell(NamedTuple):
    """How many images, or pixels, of a true class got a label, and their share of the class's."""

    amount: int
    share: float
    right: bool

    @property
    def tint(self) -> float:
        """How strong its colour is, at most 50 %, so that words stay legible; few mistakes are seen, too."""
        return 50 * (self.share if self.right else self.share**0.5)


class Line(NamedTuple):
    """A true class, how many images or pixels it has, and what they got."""

    label: str
    amount: int
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusions of the most frequent of ``count`` classes: a row a true class.

    ``columns`` are these classes, then ``other`` and ``failed`` where there are such. ``unit`` is what it
    counts; of pixels the shares are shown, since there are too many.
    """

    columns: Sequence[str]
    rows: Sequence[Line]
    count: int
    unit: str


class Confusion(NamedTuple):
    """A class that is taken for another one: how often, and the share of its images or pixels."""

    truth: str
    predicted: str
    amount: int
    share: float


def class_tables(context: ReportContext, metrics: Mapping[str, Value]) -> list[ClassTable]:
    """Return the tables of the classes that the evaluation has, one for each way of judging."""
    found = []
    for layout in (one for entry in context.answers.values() for one in entry.class_layouts(metrics)):
        table = context.table(layout.table, ["label", "truths", layout.main, *layout.others])
        if table is not None and table.num_rows:
            found.append(_class_table(layout, table))
    return found


def confusion_matrix(context: ReportContext) -> tuple[Matrix | None, list[Confusion]]:
    """Return the matrix of the most frequent classes; where there are more, also the worst confusions."""
    cells = context.table("confusion", ["truth", "predicted", "failed", "count"])
    if cells is None or not cells.num_rows:
        return None, []
    sums: Any = cells.group_by("truth").aggregate([("count", "sum")])
    totals = dict(zip(sums["truth"].to_pylist(), sums["count_sum"].to_pylist(), strict=True))
    ranked = sorted(totals, key=lambda label: (-totals[label], label))[:MOST_IN_MATRIX]
    entry = next((one for one in context.answers.values() if one.is_confused), None)
    matrix = _matrix(cells, sorted(ranked), totals, entry.unit if entry else AnswerReport.unit)
    return matrix, _confusions(cells, totals) if len(totals) > len(ranked) else []


def _class_table(layout: ClassLayout, table: pa.Table) -> ClassTable:
    ranked = table.sort_by([("truths", "descending"), ("label", "ascending")]).slice(0, MOST_ROWS)
    rows = [
        ClassRow(
            label=str(row["label"]),
            truths=number(row["truths"]),
            main=share(row[layout.main]),
            share=row[layout.main] or 0.0,
            others=[share(row[name]) for name in layout.others],
        )
        for row in ranked.to_pylist()
    ]
    names = [layout.what, *(_heading(name) for name in (layout.main, *layout.others))]
    return ClassTable(layout.how, names, rows, table.num_rows)


def _heading(column: str) -> str:
    name = column.removeprefix("mask_").removeprefix("keypoint_")
    return (name[0].upper() + name[1:]).replace("_", " ")


def _matrix(cells: pa.Table, labels: Sequence[str], totals: dict[str, int], unit: str) -> Matrix:
    """Count with numpy: the cells that are not zero may be a million."""
    names = pa.array(labels, pa.string())
    true: Any = pc.index_in(cells["truth"], names)
    chosen: Any = cells.filter(true.is_valid())
    said: Any = pc.fill_null(pc.index_in(chosen["predicted"], names), len(labels))
    column = said.to_numpy() + chosen["failed"].to_numpy()  # The label's, that of others, that of failed.
    counts = np.zeros((len(labels), len(labels) + 2), np.int64)
    np.add.at(counts, (true.drop_null().to_numpy(), column), chosen["count"].to_numpy())
    kept = np.append(np.ones(len(labels), bool), counts[:, len(labels) :].any(axis=0))
    columns = [*labels, "other", "failed"]
    rows = []
    for row, (label, line) in enumerate(zip(labels, counts.tolist(), strict=True)):
        total = totals[label]
        found = (Cell(count, count / total, column == row) for column, count in enumerate(line))
        rows.append(Line(label, total, list(compress(found, kept))))
    return Matrix(list(compress(columns, kept)), rows, len(totals), unit)


def _confusions(cells: pa.Table, totals: dict[str, int]) -> list[Confusion]:
    wrong: Any = pc.not_equal(cells["truth"], cells["predicted"])  # Null where failed: not among these.
    ranked = cells.filter(wrong).sort_by(
        [("count", "descending"), ("truth", "ascending"), ("predicted", "ascending")]
    )
    return [
        Confusion(row["truth"], row["predicted"], row["count"], row["count"] / totals[row["truth"]])
        for row in ranked.slice(0, MOST_CONFUSIONS).to_pylist()
    ]
