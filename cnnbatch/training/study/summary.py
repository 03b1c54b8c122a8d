"""What the trials of a study say together: a group for each combination, its runs as means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbatch.config.study import Study
from cnnbatch.training.study.record import Row, test_of, validation_of


@dataclass(frozen=True)
class Group:
    """The runs of one combination: ``validation`` over folds, or seeds; ``test`` over the seeds.

    Each fold counts by its images; ``spread`` is from the least to the greatest test.
    """

    case: str
    settings: Mapping[str, Any]
    rows: Sequence[Row]
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
        taken = [str(row["strategy"]) for row in self.rows if row.get("strategy")]
        return sorted(set(taken), key=lambda one: (-taken.count(one), one))

    @property
    def seconds(self) -> float:
        """How long a run trained, on average."""
        total: float = sum(row.get("seconds", 0.0) for row in self.rows)
        return total / max(len(self.rows), 1)


def groups(rows: Iterable[Row], study: Study) -> list[Group]:
    """Return the combinations in the order of their first trials."""
    together: dict[str, list[Row]] = {}
    for row in rows:
        together.setdefault(repr((row["case"], row["settings"])), []).append(row)
    return [_group(some, study) for some in together.values()]


def ranked(found: Iterable[Group]) -> list[Group]:
    """Return groups with the best validation first; those without any last."""
    return sorted(found, key=lambda one: -1.0 if one.validation is None else one.validation, reverse=True)


def _group(rows: Sequence[Row], study: Study) -> Group:
    judged = [row for row in rows if row["run"] < (study.folds or study.seeds)]
    validated = [(validation_of(row, study.metric), row.get("validation_images", 1)) for row in judged]
    tests = [value for row in rows[: study.seeds] if (value := test_of(row, study.metric)) is not None]
    return Group(
        case=rows[0]["case"],
        settings=rows[0]["settings"],
        rows=rows,
        validation=_mean([(value, images) for value, images in validated if value is not None]),
        test=_mean([(value, 1) for value in tests]),
        spread=(min(tests), max(tests)) if tests else None,
    )


def _mean(weighted: Sequence[tuple[float, float]]) -> float | None:
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total else None
