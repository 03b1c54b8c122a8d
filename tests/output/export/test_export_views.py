"""Exports of rows with several answers: one of them is written, and what is not is said."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.output.export import ExportOptions, ExportSummary, export
from cnnbatch.report.painter import painter
from tests import tiny_instances, tiny_views


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_views.output(tmp_path_factory.mktemp("views"))


@pytest.fixture(scope="module")
def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cnnbatch.open(str(output)).arrow().to_pylist()
    assert any(row["boxes"] for row in found)
    return found


def written(out: Path, format: str, to: Path, column: str | None = None) -> ExportSummary:
    return export(str(out), format, str(to), ExportOptions(column=column, paint=painter))


def results(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return found


def test_coco_has_objects_with_masks_or_boxes_or_maps(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for column in ("objects", "boxes"):
        summary = written(output, "coco", tmp_path / column, column)
        found = results(tmp_path / column)
        expected = [one for row in rows for one in row[column]]
        assert summary.counts.objects == len(found) == len(expected)
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected])
        boxes = [[one["box"][side] for side in ("x1", "y1")] for one in expected]
        assert [one["bbox"][:2] for one in found] == boxes
        assert all(("segmentation" in one) == (column == "objects") for one in found)
    written(output, "coco", tmp_path / "unasked")
    assert results(tmp_path / "unasked") == results(tmp_path / "objects")
    written(output, "coco", tmp_path / "map", "map")
    covered = np.zeros(tiny_views.SIZE, int)
    for one in results(tmp_path / "map"):
        if one["image_id"] == 0:
            covered += tiny_instances.inside(one["segmentation"])
    assert (covered == 1).all()


def test_voc_and_yolo_have_the_boxes_and_the_map_on_request(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    written(output, "voc", tmp_path / "boxes", "boxes")
    assert not (tmp_path / "boxes" / "SegmentationClass").exists()
    text = (tmp_path / "boxes" / "Annotations" / "000.xml").read_text()
    assert text.count("<object>") == len(rows[0]["boxes"])
    written(output, "voc", tmp_path / "map", "map")
    assert (tmp_path / "map" / "classes.txt").read_text().split() == tiny_views.CLASSES
    with Image.open(tmp_path / "map" / "SegmentationClass" / "000.png") as image:
        assert np.array_equal(np.asarray(image), class_map.from_png(rows[0]["map"]))
    for column, numbers in (("boxes", 5), ("objects", 9)):
        written(output, "yolo", tmp_path / f"yolo {column}", column)
        lines = (tmp_path / f"yolo {column}" / "labels" / "000.txt").read_text().splitlines()
        assert len(lines) == len(rows[0][column])
        assert all((len(line.split()) == 5) == (numbers == 5) for line in lines)


def test_csv_has_all_columns_and_a_row_an_object_of_one(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    for column, other in (("boxes", "objects"), ("objects", "boxes")):
        written(output, "csv", tmp_path / f"{column}.csv", column)
        with (tmp_path / f"{column}.csv").open() as file:
            table = list(csv.DictReader(file))
        assert len(table) == sum(max(1, len(row[column])) for row in rows)
        assert column not in table[0]
        assert len(json.loads(table[0][other])) == len(rows[0][other])
        assert ("mask" in table[0]) == (column == "objects")


def test_pictures_are_as_large_as_their_images_and_of_one_answer(output: Path, tmp_path: Path) -> None:
    pixels = {}
    for column in ("objects", "boxes", "map"):
        written(output, "pictures", tmp_path / column, column)
        with Image.open(tmp_path / column / "overlays" / "000.jpg") as image:
            assert image.size == tiny_views.SIZE[::-1]
            pixels[column] = np.asarray(image).astype(int)
        cut = sorted((tmp_path / column).glob("cutouts/000/*"))
        assert bool(cut) == (column != "map")
        modes = set()
        for path in cut:
            with Image.open(path) as image:
                modes.add(image.mode)
        assert modes == {"objects": {"RGBA"}, "boxes": {"RGB"}, "map": set()}[column]
    assert np.abs(pixels["objects"] - pixels["boxes"]).max() > 30
    assert np.abs(pixels["map"] - pixels["boxes"]).max() > 30


def test_what_is_not_written_is_said(output: Path, tmp_path: Path) -> None:
    arguments = ["export", str(output), "--format", "coco", "--to"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    assert done.exit_code == 0, done.output
    assert "not written: boxes, map; --column NAME writes one of them instead" in done.output
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "two"), "--column", "boxes"])
    assert "not written: objects, map" in done.output
    assert not any("not written" in line for line in written(output, "csv", tmp_path / "all").lines())


def test_columns_that_a_format_cannot_write_are_refused(output: Path, tmp_path: Path) -> None:
    for format, column, known in (
        ("coco", "mask", "objects, boxes, map"),
        ("yolo", "map", "objects, boxes"),
        ("csv", "map", "objects, boxes"),
    ):
        with pytest.raises(UserError, match=re.escape(f"--column: expected one of {known}, got '{column}'")):
            written(output, format, tmp_path / "to", column)
    with pytest.raises(UserError, match="--score-threshold is for objects or boxes"):
        export(str(output), "coco", str(tmp_path / "to"), ExportOptions(0.5, column="map"))
