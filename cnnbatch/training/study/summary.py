"""What the trials of a study say together: each combination with its runs as means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbatch.config.study import Study
from cnnbatch.training.study.record import TrialRecord


@dataclass(frozen=True)
class Combination:
    """The runs of one combination: ``validation`` over folds, or seeds; ``test`` over the seeds.

    Each fold counts by its images; ``spread`` is from the least to the greatest test.
    """

    case: str
    settings: Mapping[str, Any]
    records: Sequence[TrialRecord]
    validation: float | None
    test: float | None
    spread: tuple[float, float] | None

    @property
    def label(self) -> str:
        """What tells it from the others of its case, in words."""
        return ", ".join(str(value) for value in self.settings.values()) or "as the job has it"

    @property
    def strategies(self) -> list[str]:
        """The strategies that its runs took, the most frequent first."""
        taken = [record.strategy for record in self.records if record.strategy]
        return sorted(set(taken), key=lambda one: (-taken.count(one), one))

    def test_interval(self, metric: str) -> tuple[float, float] | None:
        """Return the 95 % interval of the test's number; None of several runs, or where none is known."""
        found = self.records[0].tested(metric) if len(self.records) == 1 else None
        return None if found is None or found.low is None or found.high is None else (found.low, found.high)

    @property
    def seconds(self) -> float:
        """How long a run trained, on average."""
        return sum(record.seconds for record in self.records) / max(len(self.records), 1)


def combinations(records: Iterable[TrialRecord], study: Study) -> list[Combination]:
    """Return the combinations in the order of their first trials."""
    together: dict[str, list[TrialRecord]] = {}
    for record in records:
        together.setdefault(repr((record.case, record.settings)), []).append(record)
    return [_combination(some, study) for some in together.values()]


def ranked(found: Iterable[Combination]) -> list[Combination]:
    """Return combinations with the best validation first; those without any last."""
    return sorted(found, key=lambda one: -1.0 if one.validation is None else one.validation, reverse=True)


def _combination(records: Sequence[TrialRecord], study: Study) -> Combination:
    judged = [record for record in records if record.run < (study.folds or study.seeds)]
    validated = [(record.validation_of(study.metric), record.validation_images) for record in judged]
    tested = (record.test_of(study.metric) for record in records[: study.seeds])
    tests = [value for value in tested if value is not None]
    return Combination(
        case=records[0].case,
        settings=records[0].settings,
        records=records,
        validation=_mean([(value, images) for value, images in validated if value is not None]),
        test=_mean([(value, 1) for value in tests]),
        spread=(min(tests), max(tests)) if tests else None,
    )


def _mean(weighted: Sequence[tuple[float, float]]) -> float | None:
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total else None
