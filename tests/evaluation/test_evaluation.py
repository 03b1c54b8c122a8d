"""The evaluation of whole outputs: equal to pycocotools, part by part, here and side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch import truth
from cnnbatch.cli.evaluate_again import evaluate_again
from cnnbatch.cluster.process_map import ProcessMap
from cnnbatch.errors import UserError
from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.evaluation.judges import judges, metric
from cnnbatch.metrics import Schemas, Value
from cnnbatch.output.evaluation import Evaluation, headlines
from cnnbatch.storage import Storage
from cnnbatch.terminal.screen import Screen
from tests import judged
from tests.outputs import bad, good, write_output

IMAGES, CLASSES = 60, 4


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return judged.dataset(IMAGES, CLASSES)


@pytest.fixture(scope="module")
def found(data: dict[str, Any]) -> list[dict[str, Any]]:
    return judged.detections(data)


def evaluated(folder: Path, terms: Terms = Terms(), **options: Any) -> Evaluation:  # noqa: B008
    evaluation = evaluate(str(folder), Storage(), terms, **options)
    assert evaluation is not None
    return evaluation


def test_the_numbers_are_pycocotools(tmp_path: Path, data: Any, found: Any) -> None:
    stats = judged.reference(data, found).stats
    folder = judged.write_detected(tmp_path / "out", data, found)
    evaluation = evaluated(folder)
    values = [value.value for value in evaluation.metrics.values()]
    assert values == pytest.approx(stats.tolist(), abs=1e-9)
    assert " ".join(evaluation.metrics) == "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl"
    assert evaluation.images == IMAGES
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["metrics"]["AP"]["value"] == values[0]
    assert set(written["metrics"]["AP"]) == {"value", "low", "high", "count"}
    assert cnnbatch.open(folder).evaluation() == evaluation


def test_parts_and_workers_change_nothing(tmp_path: Path, data: Any, found: Any) -> None:
    one = evaluated(judged.write_detected(tmp_path / "one", data, found, parts=1))
    five = judged.write_detected(tmp_path / "five", data, found, parts=5)
    alone = evaluated(five)
    side_by_side = evaluated(five, apply=ProcessMap(2))
    assert one.metrics == alone.metrics == side_by_side.metrics


def test_a_failed_image_is_a_miss(tmp_path: Path, data: Any, found: Any) -> None:
    lost = [one["id"] for one in data["images"][:20]]
    kept = [one for one in found if one["image_id"] not in lost]
    evaluation = evaluated(judged.write_detected(tmp_path / "out", data, found, failed=lost))
    assert evaluation.failed == len(lost)
    assert evaluation.metrics["AP"].value == pytest.approx(judged.reference(data, kept).stats[0], abs=1e-9)


def test_slices_are_evaluations_of_their_images(tmp_path: Path, data: Any, found: Any) -> None:
    folder = judged.write_detected(tmp_path / "out", data, found)
    evaluation = evaluated(folder, Terms(slices=["camera"]))
    for camera in ("front", "back"):
        ids = {one["id"] for one in data["images"] if bool(one["id"] % 3) == (camera == "front")}
        part = {
            **data,
            "images": [one for one in data["images"] if one["id"] in ids],
            "annotations": [one for one in data["annotations"] if one["image_id"] in ids],
        }
        stats = judged.reference(part, [one for one in found if one["image_id"] in ids]).stats
        values = [value.value for value in evaluation.slices["camera"][camera].values()]
        assert values == pytest.approx(stats.tolist(), abs=1e-9)


def test_a_class_that_is_left_out_is_counted(tmp_path: Path, data: Any, found: Any) -> None:
    gone = [one for one in data["annotations"] if one["category_id"] == 2]
    folder = judged.write_detected(tmp_path / "out", data, found, aliases={"class 2": None})
    evaluation = evaluated(folder)
    rest = {**data, "annotations": [one for one in data["annotations"] if one["category_id"] != 2]}
    assert evaluation.metrics["AP"].value == pytest.approx(judged.reference(rest, found).stats[0], abs=1e-9)
    reason = "true objects of class 2, a class that is left out"
    assert evaluation.notes == {reason: len(gone)}


def test_every_image_has_its_row(tmp_path: Path, data: Any, found: Any) -> None:
    folder = judged.write_detected(tmp_path / "out", data, found)
    evaluated(folder)
    rows = pq.read_table(folder / "evaluation" / "images.parquet").to_pylist()
    assert [row["key"] for row in rows] == [one["file_name"] for one in data["images"]]
    counts = [
        sum(one["image_id"] == image["id"] and not one["iscrowd"] for one in data["annotations"])
        for image in data["images"]
    ]
    assert [row["truths"] for row in rows] == counts
    predictions = pq.read_table(folder / "predictions" / "part-00000001.parquet")
    assert [row["key"] for row in rows if row["part"] == 1] == predictions["key"].to_pylist()


def test_another_truth_is_joined_by_key(tmp_path: Path, data: Any, found: Any) -> None:
    """It has other boxes, lacks some images, and has images that the output lacks."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for image in data["images"]:
        (photos / image["file_name"]).write_bytes(b"never decoded")
    other = judged.dataset(IMAGES + 5, CLASSES, seed=7)
    other["images"] = [one for one in other["images"] if one["id"] > 10]
    other["annotations"] = [one for one in other["annotations"] if one["image_id"] > 10]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(other))
    folder = judged.write_detected(tmp_path / "out", data, found)
    evaluation = evaluate_again(str(folder), [f"truth={path}"], Screen(quiet=True))
    ids = range(11, IMAGES + 1)
    both = {**other, "annotations": [one for one in other["annotations"] if one["image_id"] in ids]}
    both["images"] = [one for one in other["images"] if one["id"] in ids]
    stats = judged.reference(both, [one for one in found if one["image_id"] in ids]).stats
    assert evaluation.metrics["AP"].value == pytest.approx(stats[0], abs=1e-9)
    assert evaluation.images == len(ids)
    assert evaluation.notes == {
        "images without ground truth": 10,
        "rows of ground truth whose images the output lacks": 5,
    }
    assert "truth" in evaluation.truth


def test_what_is_odd_in_the_truth_is_counted(tmp_path: Path, data: Any, found: Any) -> None:
    folder = judged.write_detected(tmp_path / "out", data, found, parts=1)
    path = folder / "_job" / "truth" / "part-00000000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    first, second, third, fourth = (
        {"label": "class 1", "box": {"x1": x1, "y1": 5.0, "x2": x2, "y2": 9.0}}
        for x1, x2 in [(4.0, 4.0), (-2.0, 7.0), (600.0, 641.0), (float("nan"), 8.0)]
    )
    rows[0]["objects"] = [first, second, third, fourth]
    rows[1] |= {"objects": None, "problem": "its ground truth is for 3 x 4 pixels, the image has 5 x 6"}
    rows[2] |= {"objects": None}
    pq.write_table(truth.table(rows, table.schema), path)
    assert evaluated(folder).notes == {
        "images whose ground truth is for another size": 1,
        "images without ground truth": 1,
        "true objects of no area, counted as missed": 1,
        "true objects reaching beyond the edge of the image, counted as they are": 1,
        "true objects with a box or score that is no number": 1,
    }


def test_voc_s_numbers_where_the_truth_knows_difficult_objects(tmp_path: Path, data: Any, found: Any) -> None:
    """Detections that are the truths, of which every image has a difficult one that was not found."""
    folder = judged.write_detected(tmp_path / "out", {**data, "annotations": []}, [], parts=1)
    box = {"x1": 5.0, "y1": 5.0, "x2": 50.0, "y2": 50.0}
    path = folder / "_job" / "truth" / "part-00000000.parquet"
    table = pq.read_table(path)
    plain, difficult = ({"label": "class 1", "box": box, "difficult": one} for one in (False, True))
    objects = [[plain, {**difficult, "box": {**box, "x1": 4.0}}] for _ in range(IMAGES)]
    rows = [{**row, "objects": some} for row, some in zip(table.to_pylist(), objects, strict=True)]
    pq.write_table(truth.table(rows, table.schema), path)
    part = folder / "predictions" / "part-00000000.parquet"
    predictions = pq.read_table(part)
    one = {"label": "class 1", "score": 0.5, "box": box}
    column = pa.array([[one]] * IMAGES, judged.FOUND)
    pq.write_table(
        predictions.set_column(predictions.schema.get_field_index("objects"), "objects", column), part
    )
    metrics = evaluated(folder).metrics
    assert metrics["VOC2007_AP50"].value == metrics["VOC2010_AP50"].value == 1
    assert metrics["AR100"].value == 0.5  # COCO knows no difficult objects.


def test_a_part_without_its_truth_is_noted(tmp_path: Path, data: Any, found: Any) -> None:
    folder = judged.write_detected(tmp_path / "out", data, found)
    (folder / "_job" / "truth" / "part-00000001.parquet").unlink()
    evaluation = evaluated(folder)
    assert (evaluation.images, evaluation.notes) == (IMAGES - 20, {"images without ground truth": 20})
    shutil.rmtree(folder / "_job" / "truth")
    assert evaluate(str(folder), Storage()) is None
    with pytest.raises(UserError, match="has no ground truth that its predictions can be evaluated against"):
        evaluate_again(str(folder), [], Screen(quiet=True))


def test_classes_are_judged(tmp_path: Path) -> None:
    """Twelve images of three classes, one of which the model does not know; one image failed."""
    names = ["cat", "dog"]
    rows = [
        good(f"{n}.jpg", f"/{n}.jpg", [(names[n % 2], 0.75), (names[1 - n % 2], 0.25)]) for n in range(11)
    ]
    write_output(tmp_path, [rows[:7], [*rows[7:], bad("11.jpg", "truncated", "made so")]])
    labels = ["cat", "dog", "cat", "cat", "dog", "dog", "eel", None, "cat", "dog", "cat", "dog"]
    (tmp_path / "_job" / "classes.json").write_text(json.dumps({"names": names, "ids": [], "aliases": {}}))
    (tmp_path / "_job" / "truth").mkdir()
    for part, some in enumerate((labels[:7], labels[7:])):
        table = truth.table([{"image_id": None, "label": one} for one in some], truth.LABEL_SCHEMA)
        pq.write_table(table, tmp_path / "_job" / "truth" / f"part-{part:08}.parquet")
    evaluation = evaluated(tmp_path)
    right = [n for n in range(11) if labels[n] == names[n % 2]]
    assert evaluation.metrics["top1"].value == len(right) / 11
    assert evaluation.metrics["top5"].value == 9 / 11
    assert evaluation.metrics["log_loss"].reason
    assert (evaluation.images, evaluation.failed) == (11, 1)
    unknown = "images of a class that the model does not know, counted as mistakes"
    assert evaluation.notes == {"images without ground truth": 1, unknown: 1}
    found = pq.read_table(tmp_path / "evaluation" / "images.parquet").to_pylist()
    assert [int(row["key"][:-4]) for row in found if row["right"]] == right
    assert [(row["part"], row["row"]) for row in found][-1] == (1, 4)


def test_columns_that_mean_something_else_are_not_judged() -> None:
    other = pa.schema([("label", pa.int64()), ("objects", pa.list_(pa.struct([("label", pa.string())])))])
    assert not list(judges(Schemas(other, truth.OBJECTS_SCHEMA, difficult=True)))
    assert not list(judges(Schemas(other, truth.LABEL_SCHEMA, difficult=False)))
    plain = pa.schema([("label", pa.string()), ("score", pa.string()), ("top", pa.string())])
    (name,) = judges(Schemas(plain, truth.LABEL_SCHEMA, difficult=False))
    assert list(metric(name).columns(plain)) == ["label", "probabilities"]


def test_an_evaluation_of_a_newer_version_is_refused_with_both(tmp_path: Path, data: Any, found: Any) -> None:
    folder = judged.write_detected(tmp_path / "out", data, found)
    written = evaluated(folder)
    path = folder / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2, "curves": {}}))
    with pytest.raises(
        UserError, match=r"of version 2, but this .* version 1\n  what to do: .*cnnbatch evaluate"
    ):
        cnnbatch.open(folder).evaluation()
    assert evaluated(folder) == written == cnnbatch.open(folder).evaluation()


def test_mistakes_are_named(tmp_path: Path, data: Any, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = [{**one, "name": f"klass {one['id']}"} for one in data["categories"]]
    folder = judged.write_detected(tmp_path / "out", data, found)
    with pytest.raises(UserError, match="has no column 'kamera'"):
        evaluated(folder, Terms(slices=["kamera"]))
    classes = {"names": [one["name"] for one in renamed], "ids": [], "aliases": {}}
    (folder / "_job" / "classes.json").write_text(json.dumps(classes))
    with pytest.raises(UserError, match="'class 1' .the nearest: 'klass 1'"):
        evaluated(folder)
    monkeypatch.setattr("cnnbatch.evaluation.slicing.MOST_VALUES", 2)
    aliases = {f"class {number}": f"klass {number}" for number in range(1, CLASSES + 1)}
    with pytest.raises(UserError, match="slices: expected a column of at most 2 values, but 'key' has more"):
        evaluated(folder, Terms(slices=["key"], aliases=aliases))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["AP", "AP50"], ["AP"]),
        (["AP", "AP50", "mask_AP", "mask_AP50"], ["mask_AP"]),
        (["AP", "keypoint_AP"], ["keypoint_AP"]),
        (["PQ", "AP", "mask_AP"], ["PQ"]),
        (["mIoU", "pixel_accuracy"], ["mIoU"]),
        (["AP", "mIoU", "mask_AP"], ["AP", "mIoU", "mask_AP"]),
        ([], ["judged"]),
    ],
)
def test_the_number_that_a_run_says_is_the_one_that_the_report_begins_with(
    names: list[str], said: list[str]
) -> None:
    metrics = {"APs": Value(None, reason="no small objects"), **{name: Value(0.5) for name in names}}
    evaluation = Evaluation("instances", 1, 0, "truth", metrics)
    assert [line.partition(":")[0] for line in headlines(evaluation)] == said
