"""What the cases of a study came to, read from their own outputs; kept as JSON, and as a table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.evaluation.judges import less_is_better
from cnnbatch.humanize import meant
from cnnbatch.job import StudyCase, StudyJob, in_force
from cnnbatch.metrics import Value
from cnnbatch.output.evaluation import Evaluation, read_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.training.study.findings import leaves
from cnnbatch.training.study.record import TEST_NAMES
from cnnbatch.training.study.trial import output_of
from cnnbatch.training.study.words import plain

MOST_OTHERS = 3
"""Numbers that stand beside the one by which cases are compared."""
_FAILED = "failed_"


@dataclass(frozen=True)
class JudgedCase:
    """A case that was predicted and judged: its ``output``, its ``evaluation``, and how long it took."""

    trial: StudyCase
    output: Output
    evaluation: Evaluation
    seconds: float

    @property
    def label(self) -> str:
        """What tells it from the others, in words."""
        settings = map(plain, self.trial.settings.values())
        return ", ".join(filter(None, [self.trial.case, *settings]))

    def value(self, metric: str) -> Value:
        """Return one of its numbers; without a value where it has none of that name."""
        return self.evaluation.metrics.get(metric, Value(None, reason="not judged"))


def read_case(trial: StudyCase) -> JudgedCase | None:
    """Return what a trial came to; None where it is not finished, which its output's own files say."""
    output = output_of(trial)
    if output.decided("unreported") is not None or not output.finished():
        return None
    evaluation = read_evaluation(output.uri, output.storage)
    if evaluation is None:
        return None
    return JudgedCase(trial, output, evaluation, sum(run["seconds"] for run in output.runs()))


@dataclass(frozen=True)
class Comparison:
    """The cases of a study by one ``metric``; ``cut`` is what its lesson has otherwise, by path."""

    job: StudyJob
    cases: Sequence[JudgedCase]
    metric: str
    cut: Mapping[str, Any]

    @property
    def best(self) -> JudgedCase:
        """The case with the best number; of equal ones the first."""
        sign = -1 if less_is_better(self.metric) else 1
        known = [
            (sign * value, one) for one in self.cases if (value := one.value(self.metric).value) is not None
        ]
        return max(known, key=lambda pair: pair[0], default=(0, self.cases[0]))[1]

    @property
    def others(self) -> list[str]:
        """The names of the other numbers that are shown: the first that have values, and what failed."""
        names = list(dict.fromkeys(name for one in self.cases for name in one.evaluation.metrics))
        known = [
            name
            for name in names
            if name != self.metric and any(one.value(name).value is not None for one in self.cases)
        ]
        failed = [name for name in known if name.startswith(_FAILED)]
        return [name for name in known if name not in failed][:MOST_OTHERS] + failed

    @property
    def slices(self) -> dict[str, list[str]]:
        """The values of each column by which cases are sliced."""
        found: dict[str, dict[str, None]] = {}
        for one in self.cases:
            for column, values in one.evaluation.slices.items():
                found.setdefault(column, {}).update(dict.fromkeys(values))
        return {column: sorted(values) for column, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return ``study.json``: of each case what its ``evaluation.json`` says."""
        return {
            "metric": self.metric,
            "lesson": self.job.lesson,
            "cut": dict(self.cut),
            "cases": [
                {
                    "name": one.trial.name,
                    "case": one.trial.case,
                    "settings": dict(one.trial.settings),
                    "seconds": one.seconds,
                    **json.loads(one.evaluation.to_json()),
                }
                for one in self.cases
            ],
        }


def compared(given: StudyJob, trials: Sequence[StudyCase]) -> Comparison:
    """Return the finished ones of a study's trials, at least one, as they are compared.

    Raises UserError where none of them has the number of ``study.metric``.
    """
    cases = [case for case in map(read_case, trials) if case is not None]
    asked = in_force(given, given.lesson).study.metric
    metric = TEST_NAMES.get(asked, asked)
    known = list(dict.fromkeys(name for one in cases for name in one.evaluation.metrics))
    if metric not in known:
        raise UserError(
            f"study.metric: expected a number of the evaluation, got {metric!r}{meant(metric, known)}\n"
            f"  what to do: take of {', '.join(known)}; the same command then goes on"
        )
    return Comparison(given, cases, metric, dict(leaves(given.study.lesson)) if given.lesson else {})


def put_table(output: Output, cases: Sequence[JudgedCase]) -> None:
    """Write ``study.parquet``, a row a case."""
    rows = [dict(_row(one)) for one in cases]
    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), sink)
    output.storage.put(output.path("study.parquet"), sink.getvalue())


def _row(one: JudgedCase) -> Iterator[tuple[str, Any]]:
    yield from {"name": one.trial.name, "case": one.trial.case}.items()
    yield from ((path, json.dumps(value)) for path, value in one.trial.settings.items())
    yield from {
        "images": one.evaluation.images,
        "failed": one.evaluation.failed,
        "seconds": one.seconds,
    }.items()
    for name, value in one.evaluation.metrics.items():
        yield name, value.value
        if value.low is not None:
            yield from {f"{name}_low": value.low, f"{name}_high": value.high}.items()
