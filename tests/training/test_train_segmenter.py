"""A segmenter's training: pictures with maps in, a segmenter out that other jobs use by its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.launch import launch
from tests import tiny_maps as tiny
from tests.training.trained import launch_twice, metrics_of, model_of, require_same, weights_of

QUIET = RunOptions(quiet=True)
SETTINGS = {"epochs": 12, "batch": 8, "learning_rate": 0.02, "loss": {"dice": 0.5, "balance": 0.5}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training on folders as CamVid has them."""
    folder = tmp_path_factory.mktemp("segmenter")
    tiny.folders(folder / "made", 80, 20, 20)
    assert launch(tiny.job(folder / "made", folder / "out", SETTINGS), QUIET).exit_status == 0
    return folder / "out"


@pytest.mark.slow
def test_folders_of_maps_become_a_tested_segmenter(trained: Path) -> None:
    about, rows = model_of(trained), metrics_of(trained)
    assert about["classes"] == list(tiny.CLASSES)
    assert about["architecture"]["task"] == "segment"
    assert about["validation"]["of"] == "mIoU"
    assert about["validation"]["mIoU"] > 0.85
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["cross_entropy"] + rows[-1]["dice"])
    assert (about["data"]["train"], about["data"]["validation"]) == (80, 20)
    judged = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert judged["mIoU"]["value"] > 0.85
    assert '<h2 id="training">Training</h2>' in (trained / "report.html").read_text()


@pytest.mark.slow
def test_the_trained_folder_is_a_segmenter_for_other_jobs(trained: Path, tmp_path: Path) -> None:
    picture, numbers = tiny.drawn(203)
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "photos" / "one.png")
    spec = MapJob.model_validate(
        {
            "task": {"name": "segment", "model": "tests.tiny_maps:build", "weights": str(trained)},
            "input": str(tmp_path / "photos"),
            "output": str(tmp_path / "maps"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    assert run(spec, QUIET).exit_status == 0
    (row,) = cnnbatch.open(str(tmp_path / "maps")).arrow(["map", "map_classes"]).to_pylist()
    found, counted = class_map.from_png(row["map"]), numbers != tiny.IGNORED
    assert (found[counted] == numbers[counted]).mean() > 0.95
    assert {one["label"] for one in row["map_classes"]} <= set(tiny.CLASSES)


@pytest.mark.slow
def test_validation_has_the_numbers_that_an_evaluation_of_the_same_pictures_has(
    trained: Path, tmp_path: Path
) -> None:
    spec = MapJob.model_validate(
        {
            "task": {"name": "segment", "model": "tests.tiny_maps:build", "weights": str(trained)},
            "input": {
                "url": str(trained.parent / "made"),
                "subset": {"part": "validation", "by": "folder", "validation": 0, "test": 0},
            },
            "output": str(tmp_path / "maps"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    assert run(spec, QUIET).exit_status == 0
    judged = json.loads((tmp_path / "maps" / "evaluation.json").read_text())["metrics"]
    validation = model_of(trained)["validation"]
    for name in ("mIoU", "mean_accuracy", "pixel_accuracy"):
        assert judged[name]["value"] == pytest.approx(validation[name], abs=1e-4)


@pytest.mark.slow
def test_a_training_goes_on_from_a_trained_folder(trained: Path, tmp_path: Path) -> None:
    train = {"strategy": "head", "epochs": 1}
    launch(tiny.job(trained.parent / "made", tmp_path / "out", train, task={"weights": str(trained)}), QUIET)
    before, after = weights_of(trained), weights_of(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)
    assert model_of(tmp_path / "out")["validation"]["mIoU"] > 0.8


def test_classes_of_which_no_pixel_trains_are_left_out(tmp_path: Path) -> None:
    folder = tiny.folders(tmp_path / "made", 8, 4, 2)
    for path in (folder / "trainannot").iterdir():
        numbers = class_map.from_png(path.read_bytes())
        path.write_bytes(class_map.png(np.where(numbers == 1, tiny.IGNORED, numbers).astype(np.uint8)))
    launch(tiny.job(folder, tmp_path / "out", {"epochs": 1}), QUIET)
    assert model_of(tmp_path / "out")["classes"] == ["ground", "red"]


SAVING = {
    "batch": 8,
    "ema": 0.5,
    "checkpoint_s": 1e-9,
    "loss": {"dice": 0.5, "focal": 0.1, "balance": 0.5},
    "augment": {"colour": 0.2, "gamma": 1.3, "cast": 0.1, "aspect": 0.1},
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training that nothing interrupts; its folders lie beside it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    launch(tiny.job(tiny.folders(folder / "made", 24, 4, 2), folder / "out", SAVING), QUIET)
    return folder / "out"


@pytest.mark.parametrize("step", [1, 3])
def test_what_was_interrupted_goes_on_to_the_same_result(
    uninterrupted: Path, tmp_path: Path, step: int
) -> None:
    made = uninterrupted.parent / "made"
    out = tmp_path / "broken"
    launch_twice(lambda: tiny.job(made, out, SAVING), step)
    require_same(uninterrupted, out)


@pytest.mark.parametrize(
    ("task", "train", "words"),
    [
        ({"model": "onnx", "weights": "segmenter.onnx"}, {"strategy": "all"}, "an ONNX file does not train"),
        ({"aliases": {"red": "green"}}, {}, "task.aliases: a training learns"),
        ({"model": "pyramid_mobilenet_v3"}, {}, "no segmenter is called 'pyramid_mobilenet_v3'"),
        ({}, {"augment": {"mixup": 0.2}}, r"train\.augment\.mixup: not for segmenters"),
        ({}, {"class_weights": "balanced"}, r"train\.class_weights: not for segmenters"),
        ({"classes": ["ground", "blue"]}, {}, "no image trains 'blue', of 2 classes"),
    ],
)
def test_what_cannot_be_learned_is_said(
    tmp_path: Path, task: dict[str, Any], train: dict[str, Any], words: str
) -> None:
    tiny.folders(tmp_path / "made", 6, 2, 2)
    with pytest.raises(UserError, match="(?s)" + words):
        launch(tiny.job(tmp_path / "made", tmp_path / "out", train, task=task), QUIET)


def test_fields_of_maps_are_refused_elsewhere(tmp_path: Path) -> None:
    from tests import tiny as classifier
    from tests import tiny_detections as detector

    classifier.colours(tmp_path / "colours", 4)
    detector.voc(tmp_path / "voc", 10)
    asked = {"loss": {"dice": 1.0}, "augment": {"scale": (0.5, 2.0)}}
    for job in (
        classifier.job(tmp_path / "colours", tmp_path / "a", asked),
        detector.job(tmp_path / "voc", tmp_path / "b", asked),
    ):
        with pytest.raises(UserError, match=r"train\.loss.*train\.augment\.scale: not for"):
            launch(job, QUIET)
