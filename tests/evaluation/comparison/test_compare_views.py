"""Rows with several answers compared: one of them, which a person may name, and all metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.evaluation.comparison import CompareOptions, Comparison, compare
from cnnbatch.evaluation.comparison.page import page_html
from tests import tiny_views
from tests.report.test_report import Page

CUT = 0.6
"""The score from which on B's detector gives boxes."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two outputs of which only the boxes differ."""
    folder = tmp_path_factory.mktemp("views")
    seeing = {"model": "tests.tiny_instances:seeing", "weights": "random", "score_threshold": CUT}
    return tiny_views.output(folder, name="a"), tiny_views.output(folder, name="b", detect=seeing)


def compared(two: tuple[Path, Path], **options: Any) -> Comparison:
    return compare(str(two[0]), str(two[1]), CompareOptions(**options))


def test_boxes_are_compared_where_they_are_named(two: tuple[Path, Path]) -> None:
    objects, maps = compared(two), compared(two, column="map")
    assert (objects.measure.kind, objects.agreement.value) == ("objects", 1)
    assert (maps.measure.kind, maps.agreement.value) == ("map", 1)
    boxes = compared(two, column="boxes")
    a, b = (
        sum(len([one for one in row["boxes"] if one["score"] >= 0.5]) for row in rows)
        for rows in rows_of(two)
    )
    assert (boxes.counts["boxes_a"], boxes.counts["boxes_b"], boxes.counts["matched"]) == (a, b, b)
    assert 0 < b < a
    assert boxes.agreement.value == pytest.approx(2 * b / (a + b))
    assert boxes.changes is not None
    assert boxes.changes.by == "AP"
    for found in (objects, maps, boxes):
        assert found.metrics is not None
        assert {"AP", "mIoU", "mask_AP"} <= found.metrics.keys()
        assert found.metrics["mask_AP"].value == found.metrics["mIoU"].value == 0


def rows_of(two: tuple[Path, Path]) -> list[list[dict[str, Any]]]:
    return [cnnbatch.open(str(out)).arrow(["boxes"]).to_pylist() for out in two]


def test_what_is_not_compared_is_said(two: tuple[Path, Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", *map(str, two)])
    assert done.exit_code == 0, done.output
    assert "note: the column objects is compared; --column NAME compares map or boxes instead" in done.output
    arguments = ["compare", *map(str, two), "--column", "boxes", "--to", str(tmp_path / "to")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "the column boxes is compared; --column NAME compares objects or map instead" in done.output
    assert json.loads((tmp_path / "to" / "comparison.json").read_text())["compared"] == "boxes"
    with pytest.raises(
        UserError, match="expected one of objects, map, boxes, which both outputs have, got 'x'"
    ):
        compared(two, column="x")


def test_the_page_has_two_pictures_a_pair_of_what_is_compared(two: tuple[Path, Path]) -> None:
    found = compared(two, column="boxes")
    assert found.disagreements.num_rows
    assert Page(page_html(found)).tags["img"] == 2 * found.disagreements.num_rows
