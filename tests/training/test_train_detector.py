"""A detector's training: pictures with boxes in, a detector out that other jobs use by its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.launch import launch
from tests import tiny_detections as tiny
from tests.training.trained import launch_twice, metrics_of, model_of, require_same, weights_of

QUIET = RunOptions(quiet=True)
CLASSES = ("green", "red")
SETTINGS = {"epochs": 25, "batch": 8, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training on a VOC tree; one picture has no XML file."""
    folder = tmp_path_factory.mktemp("detector")
    tiny.voc(folder / "voc", 120, without=[7])
    assert launch(tiny.job(folder / "voc", folder / "out", SETTINGS), QUIET).exit_status == 0
    return folder / "out"


@pytest.mark.slow
def test_a_tree_of_boxes_becomes_a_tested_detector(trained: Path) -> None:
    about, rows = model_of(trained), metrics_of(trained)
    assert about["classes"] == ["green", "red"]
    assert about["architecture"]["task"] == "detect"
    assert about["validation"]["of"] == "AP50"
    assert about["validation"]["AP50"] > 0.5
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["bbox_regression"] + rows[-1]["classification"])
    predicted = cnnbatch.open(str(trained)).arrow(["key", "objects"]).to_pylist()
    assert about["data"]["train"] + about["data"]["validation"] + len(predicted) in (119, 120)
    assert {one["label"] for row in predicted for one in row["objects"]} <= set(CLASSES)
    judged = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert judged["AP50"]["value"] > 0.5
    assert '<h2 id="training">Training</h2>' in (trained / "report.html").read_text()


@pytest.mark.slow
def test_the_trained_folder_is_a_detector_for_other_jobs(trained: Path, tmp_path: Path) -> None:
    number = next(number for number in range(200, 220) if len(tiny.drawn(number)[1]) == 1)
    picture, objects = tiny.drawn(number)
    ((name, box),) = objects
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "photos" / "one.png")
    spec = MapJob.model_validate(
        {
            "task": {"name": "detect", "model": str(trained), "score_threshold": 0.2},
            "input": str(tmp_path / "photos"),
            "output": str(tmp_path / "boxes"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    assert run(spec, QUIET).exit_status == 0
    rows = cnnbatch.open(str(tmp_path / "boxes")).arrow(["objects"]).to_pylist()
    best = rows[0]["objects"][0]
    assert best["label"] == name
    assert list(best["box"].values()) == pytest.approx(box, abs=12)


@pytest.mark.slow
def test_a_training_goes_on_from_a_trained_folder(trained: Path, tmp_path: Path) -> None:
    tiny.voc(tmp_path / "voc", 30)
    task = {"model": str(trained), "weights": "DEFAULT", "size": None}
    train = {"strategy": "head", "epochs": 1}
    launch(tiny.job(tmp_path / "voc", tmp_path / "out", train, task=task), QUIET)
    about = model_of(tmp_path / "out")
    assert about["architecture"]["model"] == tiny.MODEL
    assert about["preprocessing"]["size"] == [tiny.SIDE, tiny.SIDE]
    before, after = weights_of(trained), weights_of(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("head.") and "running" not in name for name in changed)


@pytest.mark.slow
def test_a_file_of_coco_trains_the_classes_that_have_objects(tmp_path: Path) -> None:
    path = tiny.coco(tmp_path / "coco", 24)
    launch(tiny.job(path, tmp_path / "out", {"epochs": 1, "test": 0.2}), QUIET)
    assert model_of(tmp_path / "out")["classes"] == ["red", "green"]
    assert "AP" in json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]


SAVING = {"batch": 8, "ema": 0.5, "augment": {"colour": 0.2}, "checkpoint_s": 1e-9}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training that nothing interrupts; its tree lies beside it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    launch(tiny.job(tiny.voc(folder / "voc", 24), folder / "out", SAVING), QUIET)
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_what_was_interrupted_goes_on_to_the_same_result(
    uninterrupted: Path, tmp_path: Path, step: int
) -> None:
    voc = uninterrupted.parent / "voc"
    out = tmp_path / "broken"
    launch_twice(lambda: tiny.job(voc, out, SAVING), step)
    require_same(uninterrupted, out)


@pytest.mark.parametrize(
    ("task", "train", "words"),
    [
        ({"model": "yolov3_tiny"}, {}, "yolov3_tiny does not train.*fasterrcnn_resnet50_fpn, .*ssdlite320"),
        ({"model": "maskrcnn_resnet50_fpn"}, {}, "maskrcnn_resnet50_fpn does not train"),
        ({"model": "onnx", "adapter": "yolo"}, {}, "onnx does not train"),
        ({"model": "tests.tiny:build"}, {}, "tests.tiny:build does not train"),
        ({"model": "ssdlite320_mobilenet_v3_larg"}, {}, "did you mean ssdlite320_mobilenet_v3_large"),
        ({"aliases": {"red": "green"}}, {}, "task.aliases: a training learns"),
        (
            {},
            {"augment": {"mixup": 0.2, "crop": 0.5}},
            r"train\.augment\.crop, train\.augment\.mixup: not for",
        ),
        ({}, {"class_weights": "balanced"}, r"train\.class_weights: not for detectors"),
        ({}, {"strategy": "as_is"}, "as_is needs a detector that knows all classes.*green, red"),
        ({"classes": ["red"]}, {}, "none of 1 classes: 'green'"),
    ],
)
def test_what_cannot_be_learned_is_said(
    tmp_path: Path, task: dict[str, Any], train: dict[str, Any], words: str
) -> None:
    tiny.voc(tmp_path / "voc", 24)
    with pytest.raises(UserError, match="(?s)" + words):
        launch(tiny.job(tmp_path / "voc", tmp_path / "out", train, task=task), QUIET)
