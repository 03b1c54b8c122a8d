"""A Mask R-CNN's training: pictures with masks in, a network out that other jobs use by its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

import cnnbatch
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.launch import launch
from tests import tiny_instances as tiny
from tests.training.trained import model_of

QUIET = RunOptions(quiet=True)
SETTINGS = {
    "epochs": 10,
    "batch": 4,
    "learning_rate": 0.004,
    "proposals": 16,
    "warmup": 0.1,
    "validation": 0.1,
    "test": 0.2,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training on COCO's masks."""
    folder = tmp_path_factory.mktemp("instances")
    truth = tiny.write_coco(folder / "coco", 48)
    assert launch(tiny.job(truth, folder / "out", SETTINGS), QUIET).exit_status == 0
    return folder / "out"


@pytest.mark.slow
def test_a_mask_rcnn_on_mobilenet_v2_learns_a_made_set(trained: Path) -> None:
    about = model_of(trained)
    assert about["classes"] == [*tiny.CLASSES]
    assert about["architecture"]["task"] == "instances"
    assert about["architecture"]["model"] == tiny.MODEL
    assert about["validation"]["of"] == "mask_AP50"
    assert about["validation"]["mask_AP50"] > 0.4
    judged = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert judged["mask_AP50"]["value"] > 0.4
    assert judged["AP50"]["value"] > 0.3


@pytest.mark.slow
def test_the_trained_folder_finds_masks_in_other_pictures(trained: Path, tmp_path: Path) -> None:
    picture, objects = tiny.drawn(200, (130, 170))
    (tmp_path / "photos").mkdir()
    picture.save(tmp_path / "photos" / "one.png")
    spec = MapJob.model_validate(
        {
            "task": {"name": "instances", "model": str(trained), "score_threshold": 0.3},
            "input": str(tmp_path / "photos"),
            "output": str(tmp_path / "out"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    assert run(spec, QUIET).exit_status == 0
    (row,) = cnnbatch.open(str(tmp_path / "out")).arrow(["objects"]).to_pylist()
    best, (name, mask) = row["objects"][0], objects[0]
    assert best["label"] == name
    found = tiny.inside(best["mask"])
    assert found.shape == mask.shape
    assert (found & mask).sum() / (found | mask).sum() > 0.6


@pytest.mark.slow
def test_a_training_begins_with_the_classifiers_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = torchvision.models.mobilenet_v3_small(num_classes=4)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    truth = tiny.write_coco(tmp_path / "coco", 14)
    task = {"model": "maskrcnn_mobilenet_v3_small_fpn", "weights": str(tmp_path / "classifier.safetensors")}
    train = {"strategy": "head", "epochs": 1, "proposals": 8, "test": 0}
    launch(tiny.job(truth, tmp_path / "out", train, task=task), QUIET)
    state = load_file(tmp_path / "out" / "model.safetensors")
    colours = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert model_of(tmp_path / "out")["preprocessing"] == {"size": [tiny.SIDE, tiny.SIDE], **colours}
    for name, tensor in classifier.features.state_dict().items():
        assert torch.equal(state[f"backbone.body.{name}"], tensor)
    assert np.isfinite(model_of(tmp_path / "out")["validation"]["mask_AP50"])
