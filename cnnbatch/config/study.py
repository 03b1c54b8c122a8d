"""The ``study:`` section of a job: what varies between its trials, and how they are judged together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cnnbatch.config.section import Count, Folds, Section, Text

MOST_TRAININGS = 2_000
"""Of a study; each is looked at before the first begins."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]


class Range(Section):
    """Numbers from ``low`` to ``high``, drawn evenly or, with ``log``, by orders of magnitude."""

    low: Finite
    high: Finite
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.high <= self.low or (self.log and self.low <= 0):
            least = "above 0, " if self.log else ""
            raise ValueError(f"expected low {least}below high, got low {self.low:g} and high {self.high:g}")
        return self

    def at(self, place: float) -> float:
        """Return the number that lies at a part of the way from ``low`` to ``high``."""
        if self.log:
            return math.exp(math.log(self.low) * (1 - place) + math.log(self.high) * place)
        return self.low * (1 - place) + self.high * place


def _by_path(value: Any) -> Any:
    """Return a section of fields, nested as in a job or dotted, by their dotted paths."""
    return dict(_paths(value, "")) if isinstance(value, Mapping) else value


def _paths(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and not {"low", "high"} & inner.keys():
            yield from _paths(inner, f"{prefix}{name}.")
        else:
            yield prefix + str(name), inner


class Study(Section):
    """What varies: every one of ``cases`` with every combination of ``vary``, or ``trials`` of a ``search``.

    Where the job has a ``train`` section, each is trained with ``seeds`` seeds and, with ``folds``, once with
    each fold of the training images as its validation; run number r has the seed r and the fold r, so five
    folds and three seeds are five runs, of which the first three count on the test images.
    """

    cases: Mapping[Text, Mapping[str, Any]] = Field(
        {}, description="By name what a case has otherwise than the job, as sections of a job."
    )
    vary: Annotated[Mapping[Text, Values], BeforeValidator(_by_path)] = Field(
        {}, description="By path of a field (train.strategy) all its values."
    )
    search: Annotated[Mapping[Text, Range | Values], BeforeValidator(_by_path)] = Field(
        {}, description="By path of a field what it is drawn from: a list, or low, high and log."
    )
    trials: Annotated[int, Field(ge=1, le=MOST_TRAININGS)] = Field(
        16, description="How many combinations a search draws."
    )
    seeds: Annotated[int, Field(ge=1, le=1_000)] = Field(
        1, description="How often each training is done, with another seed."
    )
    folds: Folds | None = Field(
        None, description="Cut the training images into so many, each of which validates once."
    )
    first: Count | None = Field(None, description="Train only so many of the runs that seeds and folds make.")
    side_by_side: bool = Field(
        False, description="Train side by side on Ray Tune, one a GPU or CPU core; a search always does."
    )
    metric: Text = Field("accuracy", description="By which number one trial is better than another.")
    show: Literal["table", "quadrants", "curves"] = Field(
        "table", description="What the report is to show of the trainings beside their table."
    )
    lesson: Mapping[str, Any] = Field(
        {}, description="What is otherwise with lesson=true, as sections of a job; the report says it."
    )

    @model_validator(mode="after")
    def _varies(self) -> Self:
        if self.search and self.vary:
            raise ValueError("expected either vary or search, got both")
        if not (self.search or self.vary or self.cases or self.runs > 1):
            raise ValueError("expected something that varies: cases, vary, search, seeds or folds")
        if self.trainings > MOST_TRAININGS:
            raise ValueError(f"expected at most {MOST_TRAININGS:,} trainings, got {self.trainings:,}")
        if (
            drawn := sum(len(one) for one in self.search.values() if isinstance(one, tuple))
        ) > MOST_TRAININGS:
            raise ValueError(f"expected search to have at most {MOST_TRAININGS:,} values, got {drawn:,}")
        return self

    @property
    def trainings(self) -> int:
        """How many trainings there are in all."""
        each = self.trials if self.search else math.prod(map(len, self.vary.values()))
        return max(1, len(self.cases)) * each * self.runs

    @property
    def runs(self) -> int:
        """How many trainings each combination has."""
        runs = max(self.seeds, self.folds or 1)
        return min(runs, self.first or runs)
