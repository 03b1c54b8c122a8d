"""A study's page: its quadrants or curves, all combinations, and a row a trial that leads to its own page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cnnbatch.config.variations import FOLDER
from cnnbatch.humanize import decimal, duration, number, percent
from cnnbatch.output.folder import Output
from cnnbatch.report import plots
from cnnbatch.report.curves import Titled
from cnnbatch.report.facts import Fact
from cnnbatch.report.numbers import share
from cnnbatch.report.template import Chart, template
from cnnbatch.storage import redact
from cnnbatch.training.data.dataset import LESSON_IMAGES
from cnnbatch.training.strategy import LESSON_EPOCHS
from cnnbatch.training.study import words
from cnnbatch.training.study.findings import STRATEGY, Course, Findings
from cnnbatch.training.study.record import TrialRecord
from cnnbatch.training.study.summary import Combination, ranked

TRIAL_HEAD = ["trial", "fold", "took", "validation", "test", "steps", "time"]
"""The heads of the columns of the trials."""


class Cells(NamedTuple):
    """A row of a table; ``marked`` where it is the best, ``link`` leads to a trial's page."""

    cells: Sequence[str]
    marked: bool = False
    link: str = ""


class CaseSection(NamedTuple):
    """A case: its combinations, what was measured of its images, and what was found."""

    id: str
    title: str
    facts: Sequence[Fact]
    head: Sequence[str]
    rows: Sequence[Cells]
    verdict: str


def write_study_report(output: Output, found: Findings) -> None:
    """Write ``report.html`` of a study, also of one that is still going on."""
    trials = [_trial(record, found.metric) for record in found.records]
    head, cells = words.filled(TRIAL_HEAD, [trial.cells for trial in trials])
    page = template("study.html.j2").render(
        title=Fact(*found.title),
        output=redact(output.uri),
        headline=_headline(found),
        lesson=_lesson(found),
        cut=[f"{path}: {value}" for path, value in found.cut.items()],
        sections=_sections(found),
        interval_chart=_intervals(found) if found.is_of_cases else None,
        quadrants=found.show == "quadrants",
        charts=list(_charts(found.courses, found.metric)),
        losses=_chart(found.losses, 0, "steps", words.combination_label),
        course_head=words.COURSE_HEAD,
        courses=[words.course_cells(course) for course in found.courses],
        trial_head=head,
        trials=[trial._replace(cells=some) for trial, some in zip(trials, cells, strict=True)],
        metric=found.metric.replace("_", " "),
    )
    output.storage.put(output.path("report.html"), page.encode())


def _lesson(found: Findings) -> dict[str, int | None] | None:
    """Return what bounds a lesson's trainings; the epochs are None where the study says them itself."""
    if not found.lesson:
        return None
    return {"images": LESSON_IMAGES, "epochs": None if "train.epochs" in found.cut else LESSON_EPOCHS}


def _headline(found: Findings) -> list[Fact]:
    facts = [
        Fact("Trainings", number(len(found.records))),
        Fact("Processing time", duration(sum(record.wall_seconds for record in found.records))),
    ]
    if judged := [verdict.holds for verdict in found.verdicts if verdict.holds is not None]:
        facts.append(Fact("auto as good as the best", f"{sum(judged)} of {len(judged)}"))
    if found.show == "table" and found.best is not None and found.best.validation is not None:
        facts.append(Fact(f"Best {found.metric.replace('_', ' ')}", percent(found.best.validation)))
    if failed := sum(record.error is not None for record in found.records):
        facts.append(Fact("Failed", number(failed)))
    return facts


def _sections(found: Findings) -> list[CaseSection]:
    if not found.is_of_cases:
        return [_section(place, case, found) for place, case in enumerate(found.cases)]
    cells = [words.case_cells(group, found.metric) for group in found.combinations]
    head, rows = words.filled(words.CASE_HEAD, cells)
    marked = [Cells(some, group is found.best) for group, some in zip(found.combinations, rows, strict=True)]
    return [CaseSection("cases", "Cases", [], head, marked, "")]


def _intervals(found: Findings) -> Chart | None:
    """Return the tests of all cases side by side, each with its interval."""
    tested = [(group, group.test) for group in found.combinations if group.test is not None]
    if len(tested) < 2:
        return None
    ends = [group.test_interval(found.metric) or (value, value) for group, value in tested]
    low, high = min(one for one, _ in ends), max(one for _, one in ends)
    places = [(place + 0.5) / len(tested) for place in range(len(tested))]

    def up(value: float) -> float:
        return (value - low) / ((high - low) or 1)

    dots = [
        plots.Dot(x, up(value), f"{group.case}: {share(value)}")
        for x, (group, value) in zip(places, tested, strict=True)
    ]
    return Chart(
        plot=plots.curves([[(x, up(a)), (x, up(b))] for x, (a, b) in zip(places, ends, strict=True)], dots),
        up=[share(low), share(high)],
        across=[tested[0][0].case, tested[-1][0].case],
        summary=f"{found.metric.replace('_', ' ').capitalize()} on the test images, with 95 % intervals, in "
        "the order of the table.",
    )


def _section(place: int, case: str, found: Findings) -> CaseSection:
    of_case = [group for group in found.combinations if group.case == case]
    verdict = next((one for one in found.verdicts if one.case == case), None)
    best = verdict.best if verdict else next(iter(ranked(of_case)), None)
    shown = of_case if found.show != "table" else ranked(of_case)
    head, rows = words.filled(words.group_head(found), [words.group_cells(group) for group in shown])
    return CaseSection(
        id=f"case-{place}",
        title=case or "All combinations",
        facts=_measured(of_case),
        head=head,
        rows=[Cells(cells, group is best) for group, cells in zip(shown, rows, strict=True)],
        verdict=words.verdict_words(verdict, found.metric) if verdict else "",
    )


def _measured(of_case: Sequence[Combination]) -> list[Fact]:
    """Return by what ``auto`` chose, of the first of its runs; nothing where none did."""
    measured = (record.figures for group in of_case for record in group.records if record.figures)
    figures = next(measured, None)
    if figures is None:
        return []
    return [
        Fact("Images a class", decimal(figures["images_per_class"])),
        Fact("Linear probe", percent(figures["linear_probe"]), f"chance {percent(figures['chance'])}"),
        Fact("Similarity", decimal(figures["similarity"])),
    ]


def _trial(record: TrialRecord, metric: str) -> Cells:
    if record.error is not None:
        return Cells([record.name, "", record.error, "", "", "", ""])
    return Cells(
        [
            record.name,
            "" if record.fold is None else str(record.fold + 1),
            record.strategy or "",
            share(record.validation_of(metric)),
            share(record.test_of(metric)),
            number(int(record.steps)),
            duration(record.seconds),
        ],
        link=f"{FOLDER}/{record.name}/report.html",
    )


def _charts(courses: Sequence[Course], metric: str) -> Iterator[Titled]:
    """Yield two charts for what differs by its strategy only: over the steps, and over the seconds."""
    together: dict[str, list[Course]] = {}
    for course in courses:
        others = [
            words.plain(value) for name, value in course.combination.settings.items() if name != STRATEGY
        ]
        title = ", ".join(filter(None, [course.combination.case, *others]))
        together.setdefault(title, []).append(course)
    for title, some in together.items():
        for unit, place in (("steps", 0), ("seconds", 1)):
            if chart := _chart(some, place, unit, _strategy_or_label):
                yield Titled(f"{title or metric.replace('_', ' ')}, over {unit}", "", chart)


def _strategy_or_label(group: Combination) -> str:
    """Return what tells a combination from others that have all but their strategy in common."""
    return str(group.settings.get(STRATEGY, group.label))


def _chart(
    courses: Sequence[Course], place: int, unit: str, named: Callable[[Combination], str]
) -> Chart | None:
    """Return the courses as lines, which have the names of their combinations."""
    drawn = [course for course in courses if len(course.points) > 1]
    values = [point.value for course in drawn for point in course.points]
    if not values:
        return None
    low, high = min(values), max(values)
    most = max(point[place] for course in drawn for point in course.points) or 1.0
    lines = [
        [(point[place] / most, (point.value - low) / ((high - low) or 1)) for point in course.points]
        for course in drawn
    ]
    names = [named(course.combination) for course in drawn]
    ends = [f"{name} {share(course.figures.end)}" for name, course in zip(names, drawn, strict=True)]
    return Chart(
        plot=plots.curves(lines),
        up=[share(low), share(high)],
        across=["0", f"{decimal(most)} {unit}"],
        summary=f"At the end: {', '.join(ends)}",
        legend=[(f"line-{number}", name) for number, name in enumerate(names)],
    )
