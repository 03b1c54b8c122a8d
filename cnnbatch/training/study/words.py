"""What a study found, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cnnbatch.humanize import decimal, duration
from cnnbatch.report.numbers import share
from cnnbatch.training.study.findings import AutoVerdict, Course, Findings
from cnnbatch.training.study.summary import Combination, ranked

MOST = 10


def lines(found: Findings) -> Iterator[str]:
    """Yield what was found."""
    if found.show == "curves":
        yield from table(COURSE_HEAD, [course_cells(course) for course in found.courses])
        return
    if found.is_of_cases:
        yield from table(CASE_HEAD, [case_cells(group, found.metric) for group in found.combinations])
        return
    for case in found.cases:
        of_case = [group for group in found.combinations if group.case == case]
        if case:
            yield case
        shown = of_case if found.show == "quadrants" else ranked(of_case)[:MOST]
        yield from table(group_head(found), [group_cells(group) for group in shown])
        yield from (f"  {verdict_words(one, found.metric)}" for one in found.verdicts if one.case == case)
    if (best := found.best) is not None and found.show == "table":
        yield f"best: {', '.join(f'{path}={plain(value)}' for path, value in best.settings.items())}"


def plain(value: object) -> str:
    """Return a field's value in a few characters."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


CASE_HEAD = ["case", "validation", "test", "95 % interval", "took", "time"]
"""The heads of the columns of `case_cells`."""


def case_cells(group: Combination, metric: str) -> list[str]:
    """Return a case that was trained in one way as the cells of a row."""
    interval = group.test_interval(metric)
    took = ", ".join(group.strategies) or next((record.error for record in group.records if record.error), "")
    return [
        group.case,
        share(group.validation),
        share(group.test),
        "" if interval is None else f"{share(interval[0])} to {share(interval[1])}",
        took,
        duration(group.seconds),
    ]


def group_head(found: Findings) -> list[str]:
    """Return the heads of the columns of `group_cells`."""
    paths = list(dict.fromkeys(path for group in found.combinations for path in group.settings))
    named = [path.rpartition(".")[2].replace("_", " ") for path in paths] or ["job"]
    return [*named, "validation", "test", "least", "most", "took", "time"]


def group_cells(group: Combination) -> list[str]:
    """Return a combination as the cells of a row."""
    low, high = group.spread or (None, None)
    settings = [plain(value) for value in group.settings.values()] or [group.label]
    took = ", ".join(group.strategies) or next((record.error for record in group.records if record.error), "")
    return [
        *settings,
        share(group.validation),
        share(group.test),
        *(["", ""] if low == high else [share(low), share(high)]),
        "" if took in settings else took,
        duration(group.seconds),
    ]


def verdict_words(verdict: AutoVerdict, metric: str) -> str:
    """Return in a sentence whether ``auto`` was as good as the best."""
    took, best, found = ", ".join(verdict.auto.strategies), verdict.best.label, verdict.difference
    head = f"auto took {took}; {best} was best on validation"
    if found is None:
        return f"{head}; they were not tested by the same images"
    within = "as good" if found.is_as_good else "worse"
    interval = (
        "" if found.low is None or found.high is None else f", 95 % {found.low:+.3f} to {found.high:+.3f}"
    )
    return f"{head}; auto is {within}: {found.value:+.3f} in {metric.replace('_', ' ')} on the test{interval}"


COURSE_HEAD = ["", "before", "start", "slope a step", "end", "as good as scratch after", ""]
"""The heads of the columns of `course_cells`."""


def course_cells(course: Course) -> list[str]:
    """Return a course's figures as the cells of a row."""
    found = course.figures
    return [
        course_label(course.combination),
        share(found.before),
        share(found.start),
        "–" if found.slope is None else f"{found.slope:+.2g}",
        share(found.end),
        "–" if found.equal_steps is None else f"{decimal(found.equal_steps)} steps",
        "–" if found.equal_seconds is None else duration(found.equal_seconds),
    ]


def course_label(group: Combination) -> str:
    """Return what a course is of."""
    return ", ".join(filter(None, [group.case, group.label]))


def combination_label(group: Combination) -> str:
    """Return what tells a combination from all others of its study."""
    settings = ", ".join(plain(value) for value in group.settings.values())
    return ", ".join(filter(None, [group.case, settings])) or group.label


def filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return a table's head and rows without the columns in which all rows have nothing."""
    kept = [column for column in range(len(head)) if not rows or any(row[column] for row in rows)]
    return [head[column] for column in kept], [[row[column] for column in kept] for row in rows]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines with their columns below each other."""
    names, cells = filled(head, rows)
    whole = [names, *cells]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    for row in whole:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
