"""The page of a study without training: a row a case, each number's interval drawn, slices, and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

from cnnbatch.config.variations import FOLDER
from cnnbatch.humanize import duration, number
from cnnbatch.metrics import Value
from cnnbatch.output.folder import Output
from cnnbatch.report.facts import Fact
from cnnbatch.report.numbers import Band, meaning_of, share
from cnnbatch.report.template import template
from cnnbatch.storage import redact
from cnnbatch.training.study.predictions.cases import Comparison, JudgedCase
from cnnbatch.training.study.predictions.pairs import shown_pairs
from cnnbatch.training.study.predictions.words import interval_words, number_words

MOST_IN_A_ROW = 6
"""Cases of a pair that stand beside each other."""


class CaseRow(NamedTuple):
    """A case in the table; ``band`` is its interval on an axis that all cases share."""

    label: str
    link: str
    value: str
    interval: str
    band: Band | None
    others: Sequence[str]
    images: str
    time: str
    marked: bool


class SliceRow(NamedTuple):
    """A case in the table of a column; a cell has the number, and its interval with the count behind it."""

    label: str
    cells: Sequence[tuple[str, str]]


class SliceTable(NamedTuple):
    """The cases by the values of a column."""

    column: str
    values: Sequence[str]
    rows: Sequence[SliceRow]


def write_page(output: Output, found: Comparison) -> None:
    """Write ``report.html`` of a study, also of one that is still going on."""
    low, high = _axis([one.value(found.metric) for one in found.cases])
    pairs = shown_pairs(found.cases)
    page = template("predictions.html.j2").render(
        task=found.job.task.name,
        output=redact(output.uri),
        headline=_headline(found),
        lesson=found.job.lesson,
        cut=[f"{path}: {value}" for path, value in found.cut.items()],
        metric=found.metric,
        meaning=meaning_of(found.metric),
        axis=(share(low), share(high)),
        others=found.others,
        rows=[_row(one, found, (low, high)) for one in found.cases],
        slices=list(_slices(found)),
        pairs=pairs,
        columns=_in_a_row(len(found.cases)),
    )
    output.storage.put(output.path("report.html"), page.encode())


def _headline(found: Comparison) -> list[Fact]:
    best = found.best
    images = {one.evaluation.images for one in found.cases}
    return [
        Fact("Cases", number(len(found.cases))),
        Fact("Images of each", " to ".join(number(each) for each in sorted({min(images), max(images)}))),
        Fact("Processing time", duration(sum(one.seconds for one in found.cases))),
        Fact(f"Best {found.metric}", share(best.value(found.metric).value), best.label),
    ]


def _row(one: JudgedCase, found: Comparison, axis: tuple[float, float]) -> CaseRow:
    value = one.value(found.metric)
    return CaseRow(
        label=one.label,
        link=f"{FOLDER}/{one.trial.name}/report.html",
        value=share(value.value),
        interval=interval_words(value),
        band=_band(value, axis),
        others=[number_words(name, one.value(name)) for name in found.others],
        images=number(one.evaluation.images),
        time=duration(one.seconds),
        marked=one is found.best,
    )


def _axis(values: Sequence[Value]) -> tuple[float, float]:
    """Return the least and the greatest end of all intervals."""
    ends = [end for one in values for end in (one.low, one.value, one.high) if end is not None]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _band(value: Value, axis: tuple[float, float]) -> Band | None:
    if value.value is None or value.low is None or value.high is None:
        return None
    least, width = axis[0], (axis[1] - axis[0]) or 1.0
    low, at, high = (100 * (one - least) / width for one in (value.low, value.value, value.high))
    return Band(round(low, 2), round(high - low, 2), round(at, 2))


def _slices(found: Comparison) -> Iterator[SliceTable]:
    for column, values in found.slices.items():
        rows = [
            SliceRow(one.label, [_cell(one, found, column, value) for value in values]) for one in found.cases
        ]
        yield SliceTable(column, values, rows)


def _cell(one: JudgedCase, found: Comparison, column: str, name: str) -> tuple[str, str]:
    metrics = one.evaluation.slices.get(column, {}).get(name, {})
    if found.metric not in metrics:
        return "–", ""
    value = metrics[found.metric]
    about = [interval_words(value), f"n = {number(value.count)}"]
    return share(value.value), ", ".join(filter(None, about))


def _in_a_row(cases: int) -> int:
    """Return how many cases stand beside each other, so that rows are as even as can be."""
    return ceil(cases / ceil(cases / MOST_IN_A_ROW))
