"""The course of a training as figures: "good initial values" are a better start, slope and end.

Pure functions of a training's ``metrics.parquet``. The seconds are those of its steps: validating and
starting are left out, so that they are comparable, and also those of a training that was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa


class Point(NamedTuple):
    """A validation: after so many steps, and so many seconds of training."""

    step: float
    seconds: float
    value: float


class Figures(NamedTuple):
    """The course of a training as numbers; what is not known is None.

    ``before`` the first step, ``start`` after the first epoch, ``slope`` what a step of it gained, ``end``
    the last. ``equal_steps`` and ``equal_seconds``: when it first was as good as another one's end.
    """

    before: float | None
    start: float | None
    slope: float | None
    end: float | None
    equal_steps: float | None = None
    equal_seconds: float | None = None


def points(metrics: pa.Table, metric: str) -> list[Point]:
    """Return the validations in a table of `cnnbatch.training.log`, in their order."""
    found: list[Point] = []
    if metric not in metrics.schema.names:
        return found
    seconds = 0.0
    for _, rows in groupby(metrics.to_pylist(), key=lambda row: row["epoch"]):
        steps: list[dict[str, Any]] = list(rows)
        images = sum(row.get("images") or 0 for row in steps)
        rate = steps[-1].get("images_per_second")
        seconds += images / rate if rate else 0.0
        if steps[-1][metric] is not None:
            found.append(Point(steps[-1]["step"] + 1, seconds, steps[-1][metric]))
    return found


def mean_course(courses: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the mean of several courses, validation by validation, as long as all of them go on."""
    return [
        Point(*(sum(values) / len(values) for values in zip(*moments, strict=True)))
        for moments in zip(*courses, strict=False)
    ]


def figures(course: Sequence[Point], equal_to: float | None = None) -> Figures:
    """Return the course as numbers; ``equal_to`` is the end of another one that it may reach."""
    before = next((point for point in course if point.step == 0), None)
    after = [point for point in course if point.step > 0]
    if not after:
        return Figures(before.value if before else None, None, None, None)
    first = after[0]
    slope = (first.value - before.value) / first.step if before else None
    reached = None if equal_to is None else next((one for one in after if one.value >= equal_to), None)
    return Figures(
        before=before.value if before else None,
        start=first.value,
        slope=slope,
        end=after[-1].value,
        equal_steps=reached.step if reached else None,
        equal_seconds=reached.seconds if reached else None,
    )


def last(course: Sequence[Point]) -> float | None:
    """Return the last validation's number."""
    return max(course, key=attrgetter("step")).value if course else None
