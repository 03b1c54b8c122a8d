"""Masks in a whole run: written beside the predictions by each shard, and read back a few at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

import cnnbatch
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.inference.run import run
from cnnbatch.output.truth_file import truth_file
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import MAP_SCHEMA, Class, classes_of, ignored_of, table
from tests import tiny_segmenter
from tests.conftest import jpeg
from tests.inference.test_run import QUIET, job

INLINE = {"pool": "inline", "cpus_per_worker": 1}
NUMBERS = np.repeat(np.array([[0, 1]], np.uint8), 32, axis=1).repeat(48, axis=0)


def test_each_shard_s_masks_lie_beside_its_rows(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(25):
        (tmp_path / "images" / f"{number:02}.jpg").write_bytes(jpeg(number))
        shape = NUMBERS[:40] if number == 17 else NUMBERS
        if number != 3:
            Image.fromarray(shape).save(tmp_path / "masks" / f"{number:02}.png")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    how = {"truth": str(tmp_path / "masks"), "relabel": {"road": "street"}}
    run(job(tmp_path / "images", tmp_path / "out", input=how), QUIET)
    parts = sorted((tmp_path / "out/_job/truth").iterdir())
    assert len(parts) == 3
    read = [pq.read_table(part) for part in parts]
    rows = [row for part in read for row in part.to_pylist()]
    for number, row in enumerate(rows):
        if number in (3, 17):
            assert row["map"] is None
        else:
            assert np.array_equal(class_map.from_png(row["map"]), NUMBERS)
    assert rows[3]["problem"] is None
    words = "its ground truth is for 64 x 40 pixels, the image has 64 x 48; its map is left out"
    assert rows[17]["problem"] == words
    for part in read:
        assert classes_of(part.schema) == (Class("sky", 0), Class("street", 1))
        assert ignored_of(part.schema) == {255}


def test_maps_lie_in_small_groups_of_rows(tmp_path: Path) -> None:
    rows = table([{"image_id": str(number), "map": b"png" * number} for number in range(150)], MAP_SCHEMA)
    (tmp_path / "a.parquet").write_bytes(truth_file(rows))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.read().equals(rows)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [64, 64, 22]
    place = file.schema_arrow.get_field_index("map")
    assert {group.column(place).compression for group in groups} == {"UNCOMPRESSED"}


COLOURS = "tests.tiny_segmenter:colours"


def scenes(folder: Path, count: int = 6) -> list[NDArray[np.uint8]]:
    """Write scenes, and masks in which sky is 7, grass 8, road 9, and 30 stands in the first row."""
    found = tiny_segmenter.scenes(folder / "photos", count)
    (folder / "masks").mkdir()
    for number, classes in enumerate(found):
        true = classes + np.uint8(7)
        true[0] = 30
        Image.fromarray(true).save(folder / "masks" / f"{number:03}.png")
    names = ["nothing"] * 7 + ["sky", "grass", "road"]
    lines = [f"{name} {number}" if name == "nothing" else name for number, name in enumerate(names)]
    (folder / "classes.txt").write_text("\n".join(lines))
    return found


def segmented(folder: Path, out: str = "out", **fields: Any) -> dict[str, Any]:
    given = {"url": str(folder / "photos"), "truth": str(folder / "masks"), **fields}
    segment = {"name": "segment", "model": COLOURS}
    cnnbatch.run("segment", task=segment, input=given, output=str(folder / out), compute=INLINE)
    found: dict[str, Any] = json.loads((folder / out / "evaluation.json").read_text())
    return found


def test_predictions_are_judged_by_masks(tmp_path: Path) -> None:
    true = scenes(tmp_path)
    found = segmented(tmp_path, ignore=[30])
    assert found["metrics"]["mIoU"]["value"] == 1
    assert found["metrics"]["pixel_accuracy"]["count"] in (6, sum(one.size - one.shape[1] for one in true))
    changed = segmented(tmp_path, "changed", ignore=[30], relabel={"grass": "road"})
    assert changed["metrics"]["mIoU"]["value"] < 0.9
    again = evaluate_again(
        str(tmp_path / "changed"), ["relabel={grass: grass}", "ignore=[30, road]"], Screen(quiet=True)
    )
    assert again.metrics["mIoU"].value == 1


def test_unknown_classes_do_not_count_and_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = scenes(tmp_path)
    lines = (tmp_path / "classes.txt").read_text().splitlines()
    (tmp_path / "classes.txt").write_text("\n".join([*lines[:-1], "asphalt"]))
    found = segmented(tmp_path, ignore=[30])
    pixels = sum(int((one[1:] == 2).sum()) for one in true)
    assert f"note:   {pixels:,} pixels of asphalt, a class that" in capsys.readouterr().out
    assert found["metrics"]["mIoU"]["value"] == 1
    assert (
        found["notes"]["pixels of asphalt, a class that the model does not know; they do not count"] == pixels
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {},
            r"of the first 6 images 6 have ground truth .*\n.*no class has: 30(?s:.*)input.ignore=\[30\]",
        ),
        ({"ignore": [30], "relabel": {"sky": "a", "grass": "b", "road": "c"}}, "none of the classes"),
    ],
)
def test_mistakes_stop_the_run_before_its_first_shard(
    fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    scenes(tmp_path)
    with pytest.raises(UserError, match=words):
        segmented(tmp_path, **fields)
    assert not list((tmp_path / "out").glob("predictions/*"))


def test_evaluation_again_refuses_masks_as_a_run_does(tmp_path: Path) -> None:
    scenes(tmp_path)
    segmented(tmp_path, ignore=[30])
    before = sorted((tmp_path / "out/evaluation").rglob("*"))
    fields = [f"truth={tmp_path / 'masks'}", "ignore=[31]"]
    with pytest.raises(UserError, match=r"of the first 6 images 6 have ground truth(?s:.*)ignore=\[30\]"):
        evaluate_again(str(tmp_path / "out"), fields, Screen(quiet=True))
    assert sorted((tmp_path / "out/evaluation").rglob("*")) == before
    fields[1] = "ignore=[30]"
    assert evaluate_again(str(tmp_path / "out"), fields, Screen(quiet=True)).metrics["mIoU"].value == 1


def test_an_earlier_output_is_the_truth_of_an_evaluation(tmp_path: Path) -> None:
    scenes(tmp_path)
    for out, relabel in (("out", {}), ("other", {"grass": None})):
        segmented(tmp_path, out, ignore=[30], relabel=relabel)
    fields = [f"truth={tmp_path / 'other'}"]
    found = evaluate_again(str(tmp_path / "out"), fields, Screen(quiet=True))
    assert (found.images, found.metrics["mIoU"].value, found.notes) == (6, 1, {})


def test_an_earlier_output_is_the_truth_of_another(tmp_path: Path) -> None:
    scenes(tmp_path)
    segmented(tmp_path, ignore=[30])
    found = segmented(tmp_path, "second", truth=str(tmp_path / "out"))
    assert found["metrics"]["mIoU"]["value"] == 1
    assert found["images"] == 6
