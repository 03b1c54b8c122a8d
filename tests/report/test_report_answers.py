"""A kind of answer that an installed package brings is in reports and on the terminal by its entry alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch import truth
from cnnbatch.config import entries
from cnnbatch.metrics import Value
from cnnbatch.output.evaluation import Evaluation
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.report.answers import ANSWERS, answer_report
from cnnbatch.report.answers.entry import AnswerReport
from cnnbatch.report.lines import result_lines
from cnnbatch.sources.counts import TruthCounts
from cnnbatch.sources.describe import Description
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef
from tests.outputs import bad, write_job, write_part
from tests.report.test_report import png, report, words

_NUMBER: pa.Field[Any] = pa.field("number", pa.float64())
NUMBERS = pa.schema([*ENGINE_COLUMNS, _NUMBER])
TRUTH = pa.schema([*truth.LABEL_SCHEMA.remove(1), _NUMBER])


class NumberReport(AnswerReport):
    """One number an image: all that is its own are its words."""

    def words(self, answer: float) -> str:
        """Return a number to one digit."""
        return f"{answer:.1f}"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a package installed that brings the kind ``number``."""
    point = EntryPoint("report.number", "tests.report.test_report_answers:NumberReport", entries.GROUP)
    monkeypatch.setattr(entries, "points", lambda: (point,))
    monkeypatch.setattr(ANSWERS, "_brought", None)
    monkeypatch.setattr(ANSWERS, "_loaded", {})
    yield
    monkeypatch.undo()
    assert answer_report("number") is None


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return an output of one number an image, with its ground truth and its evaluation."""
    out = tmp_path / "out"
    write_job(out)
    numbers = [3.25, 0.0]
    rows = [
        {"key": f"{n}.png", "uri": str(png(tmp_path, f"{n}.png")), "vanished": False, "number": number}
        | {"width": 64, "height": 48}
        for n, number in enumerate(numbers)
    ]
    write_part(out, 0, [*rows, bad("2.png", "empty", "zero bytes")], schema=NUMBERS)
    (out / "_job" / "truth").mkdir()
    truths = [{"image_id": f"{n}", "number": 4.0 * n + 2} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(truths, TRUTH), out / "_job" / "truth" / "part-00000000.parquet")
    metrics = {"mean_absolute_error": Value(3.625, 2.5, 4.5, 2)}
    found = Evaluation("counting", 3, 1, str(out / "_job" / "truth"), metrics)
    (out / "evaluation.json").write_text(found.to_json())
    return out


@pytest.mark.usefixtures("installed")
def test_a_kind_that_a_package_brings_has_captions_numbers_and_lines(output: Path) -> None:
    html = report(output)
    text = words(html)
    assert "Actual: 2.0 Predicted: 3.2" in text
    assert "Actual: 6.0 Predicted: 0.0" in text
    assert "mean_absolute_error 3.62 2.5 to 4.5" in text
    assert 'class="mark"' not in html  # A number is near or far, not right or wrong.
    assert "3.2" in cnnbatch.open(output)._repr_html_()
    assert cnnbatch.open(output).show("0.png").prediction.caption == "3.2"
    assert list(result_lines(str(output), Storage())) == [
        "  0.png: 3.2",
        "  1.png: 0.0",
        "  2.png: failed: empty (zero bytes)",
    ]


def test_a_kind_without_an_entry_has_pictures_without_captions(output: Path) -> None:
    text = words(report(output))
    assert "Predictions 0.png" in text.replace("  ", " ")
    assert "Actual" not in text
    assert "mean_absolute_error" in text
    assert cnnbatch.open(output).show("0.png").prediction.caption == ""
    assert next(iter(result_lines(str(output), Storage()))) == "  0.png: done"


def test_a_ground_truth_of_another_kind_is_described_by_how_many_images_have_one() -> None:
    from cnnbatch.images.inspect import Inspection

    found = Description(TruthCounts("number"))
    for key, number in (("a", 1.5), ("b", None)):
        found.add(ImageRef(key, key), Inspection(3, "PNG", (4, 3)), {"image_id": key, "number": number})
    assert found.truths is not None
    assert (found.truths.absent.count, found.truths.classes) == (1, {})
    assert [one.truth for one in found.sample.chosen()].count(1.5) == 1
