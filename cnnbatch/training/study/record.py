"""What a trial came to, read from its output's own files: a plain value that is kept as JSON and as a row."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.job import StudyTrial
from cnnbatch.metrics.intervals import wilson
from cnnbatch.models.trained_files import read_model
from cnnbatch.output.evaluation import read_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.storage import NotFound
from cnnbatch.training.study.curves import Point, points

Row = Mapping[str, Any]
"""A trial's record: see `record` for its fields."""

TEST_NAMES = {"accuracy": "top1", "macro_accuracy": "recall_macro"}
"""What the test calls a number of the validation, where it calls it otherwise."""


def record(trial: StudyTrial, output: Output) -> Row:
    """Return what a finished trial came to: what it is, what it chose, and its numbers with intervals."""
    about = read_model(output.uri, output.storage) or {}
    evaluation = read_evaluation(output.uri, output.storage)
    tested = {} if evaluation is None else evaluation.metrics
    subset = trial.job.input.subset
    known = dict(about.get("validation") or {})
    course = curve(output, str(known.get("of", "")))
    return {
        **identity(trial),
        "fold": None if subset is None or subset.folds is None else subset.fold,
        "strategy": about.get("strategy"),
        "why": about.get("why"),
        "figures": about.get("figures", {}),
        "learning_rate": about.get("learning_rate"),
        "epochs": len(about.get("epochs", ())),
        "steps": course[-1].step if course else 0,
        "seconds": course[-1].seconds if course else 0.0,
        "train_images": about["data"]["train"],
        "validation_images": about["data"]["validation"],
        "test_images": 0 if evaluation is None else evaluation.images,
        "validation": _validated(known, about["data"]["validation"]),
        "test": {
            name: {"value": value.value, "low": value.low, "high": value.high}
            for name, value in tested.items()
        },
        "error": None,
    }


def failure(trial: StudyTrial, words: str) -> Row:
    """Return the record of a trial that can't be trained."""
    return {**identity(trial), "validation": {}, "test": {}, "error": words}


def identity(trial: StudyTrial) -> dict[str, Any]:
    """Return which trial it is."""
    return {
        "name": trial.name,
        "case": trial.case,
        "settings": dict(trial.settings),
        "run": trial.run,
        "seed": trial.job.train.seed,
    }


def curve(output: Output, metric: str) -> list[Point]:
    """Return the validations of a trial, in their order."""
    try:
        with output.storage.open(output.path("metrics.parquet")) as file:
            return points(pq.read_table(file), metric)
    except NotFound:  # Where nothing was trained.
        return []


def _validated(best: Mapping[str, Any], images: int) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for name, value in best.items():
        if name not in ("epoch", "validation_seconds") and isinstance(value, int | float):
            low, high = wilson(round(value * images), images) if name == "accuracy" else (None, None)
            found[name] = {"value": value, "low": low, "high": high}
    return found


def validation_of(row: Row, metric: str) -> float | None:
    """Return the validation's number; None where there is none."""
    value: float | None = row["validation"].get(metric, {}).get("value")
    return value


def test_of(row: Row, metric: str) -> float | None:
    """Return the test's number of the same meaning; None where there is none."""
    value: float | None = row["test"].get(TEST_NAMES.get(metric, metric), {}).get("value")
    return value


def put_table(output: Output, rows: Sequence[Row]) -> None:
    """Write ``study.parquet``, a row a trial."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_full([_flat(row) for row in rows])), sink)
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


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "settings":
            flat |= {
                path: json.dumps(one) if isinstance(one, dict | list) else one for path, one in value.items()
            }
        elif name in ("validation", "test"):
            for metric, numbers in value.items():
                flat[f"{name}_{metric}"] = numbers["value"]
                if numbers["low"] is not None:
                    flat |= {f"{name}_{metric}_{end}": numbers[end] for end in ("low", "high")}
        elif name != "figures":
            flat[name] = value
    return flat
