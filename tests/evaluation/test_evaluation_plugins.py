"""A kind of answer that an installed package brings is evaluated by its entry points alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch.config import entries
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.evaluation.ground_truths import GROUND_TRUTHS, GroundTruth
from cnnbatch.evaluation.judges import METRICS, less_is_better
from cnnbatch.evaluation.known_classes import judged_by
from cnnbatch.metrics import Evaluated, Metric, Piece, Value
from cnnbatch.output.evaluation import lines
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.storage import Storage
from cnnbatch.truth import LABEL_SCHEMA
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Map
from tests.outputs import write_job, write_part

NUMBER = pa.field("number", pa.float64())
CUT = {"stage": "decode", "code": "truncated", "message": "made so"}
NUMBERS = pa.schema([LABEL_SCHEMA.field("image_id"), NUMBER])


class AbsoluteError(Metric):
    """The mean absolute error of one number an image."""

    answer = "number"
    less_is_better = ("MAE",)

    def partial(self, piece: Piece) -> tuple[float, int]:
        """Return the sum of the errors and their count; a failed image has none."""
        found: Any = piece.predictions["number"]
        errors = pc.abs(pc.subtract(found, piece.truth["number"])).drop_null()
        return (pc.sum(errors).as_py() or 0.0, len(errors))

    def merge(self, partials: Sequence[tuple[float, int]]) -> tuple[float, int]:
        """Add up sums and counts."""
        return (sum(total for total, _ in partials), sum(count for _, count in partials))

    def result(self, merged: tuple[float, int], apply: Map) -> Evaluated:
        """Return the mean."""
        total, count = merged
        mean = Value(total / count, count=count) if count else Value(None, reason="no image has a number")
        return Evaluated({"MAE": mean})


class WholeNumbers(GroundTruth):
    """A ground truth of whole numbers: others are odd."""

    def oddities(self, predictions: pa.Table, truth: pa.Table, classes: ModelClasses | None) -> Counter[str]:
        """Count the others."""
        numbers: list[Any] = truth["number"].to_pylist()
        return +Counter({"numbers that are not whole": sum(one % 1 > 0 for one in numbers)})


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the package."""
    brought = {"metrics": AbsoluteError, "evaluation": WholeNumbers}
    points = [
        EntryPoint(f"{layer}.number", f"{__name__}:{one.__name__}", entries.GROUP)
        for layer, one in brought.items()
    ]
    monkeypatch.setattr(entries, "points", lambda: points)
    for layer in (METRICS, GROUND_TRUTHS):
        monkeypatch.setattr(layer, "_brought", None)
        monkeypatch.setattr(layer, "_loaded", {})


def write_numbers(folder: Path, parts: Sequence[Sequence[tuple[float | None, float | None]]]) -> None:
    """Write an output whose images have a number, None where they failed, and a true one, None without."""
    write_job(folder)
    (folder / "_job" / "truth").mkdir()
    for part, some in enumerate(parts):
        rows = [
            {
                "key": f"{place}.jpg",
                "uri": "",
                "vanished": False,
                "number": one,
                "error": None if one else CUT,
            }
            for place, (one, _) in enumerate(some)
        ]
        write_part(folder, part, rows, schema=pa.schema([*ENGINE_COLUMNS, NUMBER]))
        table = pa.Table.from_pylist([{"number": true} for _, true in some], NUMBERS)
        pq.write_table(table, folder / "_job" / "truth" / f"part-{part:08}.parquet")


def test_an_installed_package_brings_metric_and_ground_truth(tmp_path: Path) -> None:
    write_numbers(tmp_path, [[(3.0, 4.0), (5.0, 2.5)], [(None, 1.0), (1.0, None), (7.0, 7.0)]])
    evaluation = evaluate(str(tmp_path), Storage(), Terms(slices=["key"]))
    assert evaluation is not None
    assert evaluation.metrics == {"MAE": Value((1 + 2.5 + 0) / 3, count=3)}
    assert evaluation.slices["key"]["1.jpg"]["MAE"].value == 2.5
    assert (evaluation.images, evaluation.failed) == (4, 1)
    assert evaluation.notes == {"images without ground truth": 1, "numbers that are not whole": 1}
    assert cnnbatch.open(tmp_path).evaluation() == evaluation
    assert "  MAE  1.1667, 3" in lines(evaluation)
    assert less_is_better("MAE")
    assert not less_is_better("AP")
    rows = pq.read_table(tmp_path / "evaluation" / "images.parquet").to_pylist()
    assert rows == [{"part": part, "row": row} for part, row in [(0, 0), (0, 1), (1, 0), (1, 2)]]


def test_numbers_are_judged_by_numbers_alone() -> None:
    assert isinstance(judged_by(NUMBERS, NUMBERS), WholeNumbers)
    assert judged_by(LABEL_SCHEMA, NUMBERS) is None
    assert judged_by(NUMBERS, LABEL_SCHEMA) is None
