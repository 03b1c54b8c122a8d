"""One picture as detection, semantic and instance segmentation: what each network says alone, in one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Picture

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.output.evaluation import read_evaluation
from cnnbatch.storage import Storage
from cnnbatch.tasks import Task
from cnnbatch.tasks.three_views import ThreeViews
from cnnbatch.types import Image, ImageRef, Runtime
from tests import tiny_instances as tiny
from tests.tasks.test_task_contract import predict

SIZE = (64, 96)
SEGMENT = {"model": "tests.tiny_segmenter:convolutions", "classes": ["background", "pole", "disc"]}
SEEING = {"model": "tests.tiny_instances:seeing", "weights": "random"}
HOW: dict[str, Any] = {"pool": "inline", "precision": "fp32", "backend": "eager"}


def task(**fields: Any) -> ThreeViews:
    views = {"detect": SEEING, "segment": SEGMENT, "instances": SEEING}
    return ThreeViews.model_validate({**views, "names": {"pole": "bar"}, **fields})


def pictures(count: int = 3) -> list[Image]:
    drawn = [tiny.drawn(number, SIZE)[0] for number in range(count)]
    pixels = [torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1) for one in drawn]
    return [Image(ImageRef(f"{number}.png", ""), one, SIZE) for number, one in enumerate(pixels)]


def alone(view: Task) -> list[dict[str, Any]]:
    return predict(view.load(Runtime("cpu")), pictures()).to_pylist()


def test_a_row_has_what_each_network_says_alone() -> None:
    made = task(segment={**SEGMENT, "uncertain": 2, "map": "rle"})
    rows = predict(made.load(Runtime("cpu")), pictures())
    assert rows.schema == made.columns()
    assert rows.schema.names == ["boxes", "map", "map_classes", "confidence", "uncertain", "objects"]
    views = zip(rows.to_pylist(), *map(alone, (made.detect, made.segment, made.instances)), strict=True)
    for row, detected, segmented, found in views:
        assert row["boxes"] == detected["objects"] != []
        assert row["objects"] == found["objects"]
        assert {name: row[name] for name in ("map", "confidence", "uncertain")} == {
            name: segmented[name] for name in ("map", "confidence", "uncertain")
        }
        called = {"pole": "bar"}
        shares = [
            {**one, "label": called.get(one["label"], one["label"])} for one in segmented["map_classes"]
        ]
        assert row["map_classes"] == shares


def test_the_classes_of_maps_come_first_under_their_names_in_the_rows() -> None:
    model = task().load(Runtime("cpu"))
    assert model.classes.names == ("background", "bar", "disc", "__background__")
    assert model.classes.maps == 3
    assert model.identity["weights"].count(" and ") == 2
    assert task().class_names() is None
    known = {"classes": ["bar", "disc"]}
    named = task(detect={**SEEING, **known}, instances={**SEEING, **known})
    assert named.class_names() == ["bar", "disc", "background"]


def test_two_classes_of_a_network_do_not_become_one() -> None:
    with pytest.raises(UserError, match=r"task\.names: pole and disc of task\.segment would both be 'disc'"):
        task(names={"pole": "disc"}).load(Runtime("cpu"))


def test_aliases_are_given_once() -> None:
    with pytest.raises(ValueError, match=r"segment\.aliases: expected task\.aliases instead"):
        task(segment={**SEGMENT, "aliases": {"a": "bar"}})


def run(name: str, task: dict[str, Any], folder: Path, out: Path, **fields: Any) -> Any:
    cnnbatch.run(
        name, quiet=True, task=task, input={"url": str(folder), **fields}, output=str(out), compute=HOW
    )
    evaluation = read_evaluation(str(out), Storage())
    assert evaluation is not None
    return evaluation


def test_each_view_is_judged_as_its_own_task_is(tmp_path: Path) -> None:
    truth = tiny.write_coco(tmp_path / "photos", 6, SIZE)
    views = task().model_dump(exclude={"name"}, exclude_defaults=True)
    found = run("three_views", views, truth, tmp_path / "out").metrics
    boxes = run("detect", dict(SEEING), truth, tmp_path / "boxes").metrics
    masks = run("instances", dict(SEEING), truth, tmp_path / "masks").metrics
    (tmp_path / "maps").mkdir()
    for number in range(6):
        numbers = np.zeros(SIZE, np.uint8)
        for name, mask in tiny.drawn(number, SIZE)[1]:
            numbers[mask] = 1 + tiny.CLASSES.index(name)
        Picture.fromarray(numbers).save(tmp_path / "maps" / f"{number:03}.png")
    (tmp_path / "maps" / "classes.txt").write_text("background\npole\ndisc\n")
    maps = run("segment", dict(SEGMENT), tmp_path / "photos", tmp_path / "map", truth=str(tmp_path / "maps"))
    expected = {
        **boxes,
        **maps.metrics,
        **{name: value for name, value in masks.items() if name.startswith("mask_")},
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert (value.value, value.low, value.high, value.count) == pytest.approx(
            (expected[name].value, expected[name].low, expected[name].high, expected[name].count)
        )
    assert {"AP", "mIoU", "mask_AP"} <= {name for name, value in found.items() if value.value is not None}


def test_maps_as_assets_and_a_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = tiny.write_coco(tmp_path / "photos", 3, SIZE)
    views = {**task().model_dump(exclude={"name"}, exclude_defaults=True)}
    views["segment"] = {**views["segment"], "map": "asset"}
    for _ in range(2):
        cnnbatch.run("three_views", task=views, input=str(truth), output=str(tmp_path / "out"), compute=HOW)
    said = "".join(capsys.readouterr())
    assert all(f"  {name}:" in said for name in ("AP", "mIoU", "mask_AP"))
    rows = cnnbatch.open(tmp_path / "out").arrow(["map"]).to_pylist()
    stored = [class_map.from_png((tmp_path / "out" / row["map"]).read_bytes()) for row in rows]
    assert [one.shape for one in stored] == [SIZE] * 3


def test_classes_that_the_segmenter_lacks_do_not_count_and_are_said(tmp_path: Path) -> None:
    truth = tiny.write_coco(tmp_path / "photos", 4, SIZE)
    views = task(segment={**SEGMENT, "classes": ["background", "sky", "disc"]}, names={})
    evaluation = run(
        "three_views", views.model_dump(exclude={"name"}, exclude_defaults=True), truth, tmp_path / "out"
    )
    bars = sum(
        int(mask.sum()) for number in range(4) for name, mask in tiny.drawn(number, SIZE)[1] if name == "bar"
    )
    notes = [
        count
        for reason, count in evaluation.notes.items()
        if "pixels of bar, a class that the model" in reason
    ]
    assert notes == [bars]
    assert evaluation.metrics["AP"].value == 1


def test_a_ground_truth_that_knows_stuff_has_no_background(tmp_path: Path) -> None:
    """A panoptic file: things for boxes and masks, all segments for the map, and the rest is left open."""
    folder = tmp_path / "photos"
    tiny.write_coco(folder, 3, SIZE)
    (tmp_path / "maps").mkdir()
    annotations, void = [], 0
    for number in range(3):
        ids, segments = np.zeros(SIZE, np.uint8), []
        stuff = np.zeros(SIZE, np.bool_)
        stuff[:20] = True
        parts = [*((name, mask) for name, mask in tiny.drawn(number, SIZE)[1]), ("lawn", stuff)]
        for place, (name, mask) in enumerate(parts, 1):
            mask = mask & (ids == 0)
            ids[mask] = place
            category = {"bar": 1, "disc": 2, "lawn": 3}[name]
            segments.append(
                {
                    "id": place,
                    "category_id": category,
                    "area": int(mask.sum()),
                    "bbox": tiny.box_xywh(mask),
                    "iscrowd": 0,
                }
            )
        void += int((ids == 0).sum())
        Picture.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1)).save(
            tmp_path / "maps" / f"{number:03}.png"
        )
        annotations.append({"image_id": number, "file_name": f"{number:03}.png", "segments_info": segments})
    images = [
        {"id": number, "file_name": f"{number:03}.png", "width": SIZE[1], "height": SIZE[0]}
        for number in range(3)
    ]
    categories = [
        {"id": 1, "name": "bar", "isthing": 1},
        {"id": 2, "name": "disc", "isthing": 1},
        {"id": 3, "name": "lawn", "isthing": 0},
    ]
    (tmp_path / "maps.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    views = task(segment={**SEGMENT, "classes": ["background", "pole", "disc", "lawn"]})
    fields = views.model_dump(exclude={"name"}, exclude_defaults=True)
    evaluation = run(
        "three_views", fields, folder, tmp_path / "out", truth=str(tmp_path / "maps.json"), format="coco"
    )
    assert evaluation.notes["pixels that the ground truth says to ignore; they do not count"] == void
    table = pq.read_table(tmp_path / "out" / "evaluation" / "map_classes.parquet")
    assert set(table["label"].to_pylist()) == {"bar", "disc", "lawn"}
    assert evaluation.metrics["AP"].count == sum(len(tiny.drawn(number, SIZE)[1]) for number in range(3))
