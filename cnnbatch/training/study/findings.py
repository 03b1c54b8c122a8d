"""What a study found: its combinations, and by what it shows, verdicts or the figures of courses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cnnbatch.config.variations import FOLDER
from cnnbatch.config.yaml import dotted
from cnnbatch.job import StudyJob
from cnnbatch.output.folder import Output
from cnnbatch.training.study.curves import Figures, Point, figures, last, mean_course
from cnnbatch.training.study.pairing import POINT, PairedDifference, difference, read_outcomes
from cnnbatch.training.study.record import TrialRecord, curve
from cnnbatch.training.study.summary import Combination, combinations, ranked

AUTO, SCRATCH = "auto", "scratch"
STRATEGY = "train.strategy"
"""The field by which courses and verdicts tell combinations apart."""
MOST_LOSSES = 5
"""Combinations whose losses are drawn in one chart, as many as have lines of their own."""


@dataclass(frozen=True)
class AutoVerdict:
    """In a case: what ``auto`` took, and what was best on validation; the difference of their tests."""

    case: str
    auto: Combination
    best: Combination
    difference: PairedDifference | None

    @property
    def holds(self) -> bool | None:
        """Say whether ``auto`` is as good as the best; None where the tests can't be compared."""
        return None if self.difference is None else self.difference.is_as_good


@dataclass(frozen=True)
class Course:
    """The mean course of a combination's runs, and its figures."""

    combination: Combination
    points: Sequence[Point]
    figures: Figures


@dataclass(frozen=True)
class Findings:
    """All that a study says; ``cut`` is what its lesson has otherwise, by path."""

    title: tuple[str, str]
    metric: str
    records: Sequence[TrialRecord]
    combinations: Sequence[Combination]
    verdicts: Sequence[AutoVerdict]
    courses: Sequence[Course]
    losses: Sequence[Course]
    lesson: bool
    cut: Mapping[str, Any]
    show: str

    @property
    def cases(self) -> list[str]:
        """The cases in their order."""
        return list(dict.fromkeys(one.case for one in self.combinations))

    @property
    def is_of_cases(self) -> bool:
        """Say whether each of several cases was trained in one way only, so that all are in one table."""
        return self.show == "table" and len(self.combinations) == len(self.cases) > 1

    @property
    def best(self) -> Combination | None:
        """The combination with the best validation."""
        return next((one for one in ranked(self.combinations) if one.validation is not None), None)

    def to_json(self) -> dict[str, Any]:
        """Return ``study.json``."""
        return {
            "metric": self.metric,
            "lesson": self.lesson,
            "cut": dict(self.cut),
            "groups": [
                {
                    "case": group.case,
                    "settings": dict(group.settings),
                    "validation": group.validation,
                    "test": group.test,
                    "test_spread": group.spread,
                    "strategies": group.strategies,
                    "seconds": group.seconds,
                    "trials": [record.name for record in group.records],
                }
                for group in self.combinations
            ],
            "verdicts": [
                {
                    "case": verdict.case,
                    "auto": verdict.auto.strategies,
                    "best": dict(verdict.best.settings),
                    "difference": None if verdict.difference is None else asdict(verdict.difference),
                    "point": POINT,
                    "holds": verdict.holds,
                }
                for verdict in self.verdicts
            ],
            "courses": [
                {"case": course.combination.case, "settings": dict(course.combination.settings)}
                | course.figures._asdict()
                for course in self.courses
            ],
        }


def find(given: StudyJob, job: StudyJob, records: Sequence[TrialRecord], output: Output) -> Findings:
    """Return what the records of a study say; ``job`` is ``given`` as it is in force."""
    found = combinations(records, job.study)
    show, metric = job.study.show, job.study.metric
    return Findings(
        title=(job.task.name, str(getattr(job.task, "model", ""))),
        metric=metric,
        records=records,
        combinations=found,
        verdicts=list(_verdicts(found, metric, job.study.seeds, output)) if show == "quadrants" else [],
        courses=list(_courses(found, metric, output)) if show == "curves" else [],
        losses=list(_losses(found, output)) if show == "table" and 1 < len(found) <= MOST_LOSSES else [],
        lesson=given.lesson,
        cut=dict(leaves(given.study.lesson)) if given.lesson else {},
        show=show,
    )


def leaves(section: Mapping[str, Any], around: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """Return the fields of a section by their dotted paths."""
    found: list[tuple[str, Any]] = []
    for name, value in section.items():
        inner = (*around, str(name))
        found += leaves(value, inner) if isinstance(value, Mapping) else [(dotted(inner), value)]
    return found


def _verdicts(found: Sequence[Combination], metric: str, seeds: int, output: Output) -> Sequence[AutoVerdict]:
    verdicts = []
    for case in dict.fromkeys(group.case for group in found):
        of_case = [group for group in found if group.case == case]
        auto = next((group for group in of_case if group.settings.get(STRATEGY) == AUTO), None)
        others = [group for group in of_case if group is not auto and group.validation is not None]
        if auto is not None and others:
            best = ranked(others)[0]
            verdicts.append(AutoVerdict(case, auto, best, _difference(auto, best, metric, seeds, output)))
    return verdicts


def _difference(
    auto: Combination, best: Combination, metric: str, seeds: int, output: Output
) -> PairedDifference | None:
    tested = [
        read_outcomes([_output(record, output) for record in group.records[:seeds]]) for group in (auto, best)
    ]
    one, other = tested
    return None if one is None or other is None else difference(one, other, metric.startswith("macro"))


def _courses(found: Sequence[Combination], metric: str, output: Output) -> Sequence[Course]:
    """Return the course of each combination, compared with that from scratch of the same other settings."""
    means = [_mean_course(group, metric, output) for group in found]
    ends = {
        _but_strategy(group): last(course)
        for group, course in zip(found, means, strict=True)
        if group.settings.get(STRATEGY) == SCRATCH
    }
    return [
        Course(group, course, figures(course, ends.get(_but_strategy(group))))
        for group, course in zip(found, means, strict=True)
    ]


def _losses(found: Sequence[Combination], output: Output) -> Iterator[Course]:
    """Yield the course of each combination's loss, that of the last step of each epoch, if it has one."""
    for group in found:
        mean = _mean_course(group, "loss", output)
        if len(mean) > 1:
            yield Course(group, mean, figures(mean))


def _mean_course(group: Combination, metric: str, output: Output) -> list[Point]:
    """Return the mean course of a number over the runs of a combination."""
    runs = [record for record in group.records if record.error is None]
    return mean_course([curve(_output(record, output), metric) for record in runs])


def _but_strategy(group: Combination) -> str:
    """Return what combinations have in common that differ by their strategy only."""
    return repr((group.case, {name: value for name, value in group.settings.items() if name != STRATEGY}))


def _output(record: TrialRecord, output: Output) -> Output:
    return Output(output.path(FOLDER, record.name), output.storage)
