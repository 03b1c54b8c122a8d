"""The numbers of cases as words: cells of a table, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from cnnbatch.humanize import decimal, duration, number
from cnnbatch.job import StudyCase
from cnnbatch.metrics import Value
from cnnbatch.report.numbers import share
from cnnbatch.training.study.predictions.cases import Comparison, JudgedCase
from cnnbatch.training.study.words import table


def head(found: Comparison) -> list[str]:
    """Return the heads of the columns of `cells`."""
    return ["case", found.metric, "95 % interval", *found.others, "images", "time"]


def cells(one: JudgedCase, found: Comparison) -> list[str]:
    """Return a case as the cells of a row."""
    value = one.value(found.metric)
    return [
        one.label,
        number_words(found.metric, value),
        interval_words(value),
        *(number_words(name, one.value(name)) for name in found.others),
        number(one.evaluation.images),
        duration(one.seconds),
    ]


def number_words(name: str, value: Value) -> str:
    """Return a number as tables have it: a share to three digits, a count whole; a dash for none."""
    counts = name.startswith("failed_") and value.value is not None
    return decimal(value.value or 0.0) if counts else share(value.value)


def interval_words(value: Value) -> str:
    """Return a number's interval; empty where it has none."""
    return "" if value.low is None or value.high is None else f"{share(value.low)} to {share(value.high)}"


def lines(found: Comparison) -> Iterator[str]:
    """Yield all cases as lines of a table."""
    yield from table(head(found), [cells(one, found) for one in found.cases])


def case_line(found: Comparison, trial: StudyCase) -> str:
    """Return what one case came to."""
    one = next(case for case in found.cases if case.trial == trial)
    value, failed = one.value(found.metric), one.evaluation.failed
    words = f"{found.metric} {share(value.value)}" if value.value is not None else f"none: {value.reason}"
    more = f", {number(failed)} failed" if failed else ""
    return f"{one.label}: {words}{more}, {duration(one.seconds)}"
