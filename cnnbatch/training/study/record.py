"""What a trial came to, read from its output's own files; kept as JSON, and as a row of a table."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.job import StudyTrial
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import wilson
from cnnbatch.models.trained_files import read_model
from cnnbatch.output.evaluation import read_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.storage import NotFound
from cnnbatch.training.study.curves import Point, points

TEST_NAMES = {"accuracy": "top1", "macro_accuracy": "recall_macro"}
"""What the test calls a number of the validation, where it calls it otherwise."""

_NUMBERS = ("validation", "test")
_OF_FAILED = ("name", "case", "settings", "run", "seed", *_NUMBERS, "error")
"""What is known of a trial that could not be trained."""


@dataclass(frozen=True)
class TrialRecord:
    """What a trial is and what it came to; of one that could not be trained only its ``error``.

    ``settings`` are by path what tells it from the others, ``run`` counts its folds or seeds. ``figures`` are
    what ``auto`` chose its strategy by; ``validation`` and ``test`` are numbers by name.
    """

    name: str
    case: str
    settings: Mapping[str, Any]
    run: int
    seed: int = 0
    fold: int | None = None
    strategy: str | None = None
    why: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    epochs: int = 0
    steps: float = 0
    seconds: float = 0.0
    train_images: int = 0
    validation_images: int = 1
    test_images: int = 0
    validation: Mapping[str, Value] = field(default_factory=dict)
    test: Mapping[str, Value] = field(default_factory=dict)
    error: str | None = None
    wall_seconds: float = 0.0

    def validation_of(self, metric: str) -> float | None:
        """Return the validation's number; None where there is none."""
        return self.validation[metric].value if metric in self.validation else None

    def test_of(self, metric: str) -> float | None:
        """Return the test's number of the same meaning; None where there is none."""
        found = self.tested(metric)
        return None if found is None else found.value

    def tested(self, metric: str) -> Value | None:
        """Return the test's number of the same meaning with its interval; None where there is none."""
        return self.test.get(TEST_NAMES.get(metric, metric))

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is kept."""
        names = _OF_FAILED if self.error is not None else [one.name for one in fields(self)]
        return {name: _plain(getattr(self, name)) for name in names}


def read_record(output: Output, name: str) -> TrialRecord | None:
    """Return the record of a finished trial of a study's ``output``; None where there is none.

    Raises UserError where it is damaged.
    """
    found = output.decided(f"trials/{name}")
    return None if found is None else _from_json(found)


def keep_record(output: Output, record: TrialRecord) -> TrialRecord:
    """Keep the record of a finished trial, unless there is one; return the one that is there."""
    return _from_json(output.decide(f"trials/{record.name}", record.to_json()))


def measured(trial: StudyTrial, output: Output) -> TrialRecord:
    """Return what a finished trial came to: what it chose, and its numbers with intervals."""
    about = read_model(output.uri, output.storage) or {}
    evaluation = read_evaluation(output.uri, output.storage)
    subset = trial.job.input.subset
    known = dict(about.get("validation") or {})
    course = curve(output, str(known.get("of", "")))
    return replace(
        _begun(trial),
        fold=None if subset is None or subset.folds is None else subset.fold,
        strategy=about.get("strategy"),
        why=about.get("why"),
        figures=about.get("figures", {}),
        learning_rate=about.get("learning_rate"),
        epochs=len(about.get("epochs", ())),
        steps=course[-1].step if course else 0,
        seconds=course[-1].seconds if course else about.get("fit_seconds", 0.0),
        train_images=about["data"]["train"],
        validation_images=about["data"]["validation"],
        test_images=0 if evaluation is None else evaluation.images,
        validation=_validated(known, about["data"]["validation"]),
        test={} if evaluation is None else evaluation.metrics,
    )


def failure(trial: StudyTrial, words: str) -> TrialRecord:
    """Return the record of a trial that can't be trained."""
    return replace(_begun(trial), error=words)


def _begun(trial: StudyTrial) -> TrialRecord:
    """Return which trial it is."""
    return TrialRecord(trial.name, trial.case, dict(trial.settings), trial.run, trial.job.train.seed)


def _from_json(found: Mapping[str, Any]) -> TrialRecord:
    known = {one.name: found[one.name] for one in fields(TrialRecord) if one.name in found}
    numbers = {name: {metric: _value(one) for metric, one in found[name].items()} for name in _NUMBERS}
    return TrialRecord(**{**known, **numbers})


def _value(found: Mapping[str, Any]) -> Value:
    return Value(found["value"], found.get("low"), found.get("high"))


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return {"value": value.value, "low": value.low, "high": value.high}
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def curve(output: Output, metric: str) -> list[Point]:
    """Return the validations of a trial, in their order."""
    try:
        with output.storage.open(output.path("metrics.parquet")) as file:
            return points(pq.read_table(file), metric)
    except NotFound:  # Where nothing was trained.
        return []


def _validated(best: Mapping[str, Any], images: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in best.items():
        if name not in ("epoch", "validation_seconds") and isinstance(value, int | float):
            low, high = wilson(round(value * images), images) if name == "accuracy" else (None, None)
            found[name] = Value(value, low, high)
    return found


def put_table(output: Output, records: Sequence[TrialRecord]) -> None:
    """Write ``study.parquet``, a row a trial."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_full([_flat(record) for record in records])), sink)
    output.storage.put(output.path("study.parquet"), sink.getvalue())


def _full(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows that all have the columns of any; of values of different kinds the JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    mixed = {name for name in names if len(_kinds(rows, name)) > 1}
    return [
        {name: json.dumps(row.get(name)) if name in mixed else row.get(name) for name in names}
        for row in rows
    ]


def _kinds(rows: Sequence[Mapping[str, Any]], name: str) -> set[type]:
    kinds = {type(value) for row in rows if (value := row.get(name)) is not None}
    return {float} if kinds == {int, float} else kinds


def _flat(record: TrialRecord) -> dict[str, Any]:
    """Return a record as a row: a column a setting, and one a number or an end of its interval."""
    flat: dict[str, Any] = {}
    for name, value in record.to_json().items():
        if name == "settings":
            flat |= {
                path: json.dumps(one) if isinstance(one, dict | list) else one for path, one in value.items()
            }
        elif name in _NUMBERS:
            for metric, numbers in value.items():
                flat[f"{name}_{metric}"] = numbers["value"]
                if numbers["low"] is not None:
                    flat |= {f"{name}_{metric}_{end}": numbers[end] for end in ("low", "high")}
        elif name != "figures":
            flat[name] = value
    return flat
