"""How keypoints are learned: any number of them, mirrored with left and right, judged by given sigmas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cnnbatch.config.train import Train
from cnnbatch.errors import UserError
from cnnbatch.metrics.iou_types import SIGMAS, SWAPPED
from cnnbatch.models import Choice
from cnnbatch.models.detectors import build_detector
from cnnbatch.tasks.keypoints import Keypoints
from cnnbatch.tasks.recipes.boxes import Boxes
from cnnbatch.tasks.recipes.detection import DetectorRecipe
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.tasks.recipes.targets import Details
from cnnbatch.types import Image, ImageRef
from tests import tiny_keypoints as tiny

DATA = TrainingData(("face",), {"face": 5}, 5)
DETAILS = Details(("keypoints",), tiny.SIGMAS, tiny.SWAPPED)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.with_a_small_head(monkeypatch)


def recipe(details: Details = DETAILS, weights: str = "random:0", **train: Any) -> DetectorRecipe:
    spec = Train.model_validate({"strategy": "scratch", "proposals": 8, **train})
    choice = Choice(
        "keypointrcnn_mobilenet_v3_small_fpn", weights, preprocessing={"size": (tiny.SIDE, tiny.SIDE)}
    )
    return DetectorRecipe(choice, spec, DATA, details, "keypoints")


def image(number: int, size: tuple[int, int] = (80, 120), **fields: Any) -> Image:
    picture, (x, y, width, height), points = tiny.drawn(number, size)
    box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
    known = [{"x": across, "y": down, "visibility": 2.0} for across, down in points]
    truth = {"objects": [{"label": "face", "box": box, "keypoints": known, **fields}]}
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    return Image(ImageRef(str(number), ""), pixels, size, truth)


def test_points_lie_where_the_eyes_are_mirrored_or_not() -> None:
    made = recipe(augment={"colour": 0.0})
    seen = set()
    for seed in range(8):
        example = made.example(image(3), Random(seed))
        points = example.target.objects.points[0]
        plain = made.example(image(3), None).target.objects.points[0]
        mirrored = not np.allclose(points, plain)
        seen.add(mirrored)
        if mirrored:
            width = example.size[1]
            assert points == pytest.approx(
                np.array([[width, 0, 0]]) + plain[[1, 0, 2]] * [[-1, 1, 1]], abs=1e-4
            )
        assert points[0, 0] < points[1, 0]  # The left eye is on the left in either.
        dark = example.pixels.mean(0)[points[:2, 1].astype(int), points[:2, 0].astype(int)]
        assert (dark < -1).all()
    assert seen == {True, False}


def test_points_scale_with_the_picture_and_areas_by_both_sides() -> None:
    some = Boxes(
        np.array([[0, 0, 10, 20]], np.float32),
        np.array([1]),
        areas=np.array([100], np.float32),
        points=np.array([[[5, 10, 2], [1, 2, 0]]], np.float32),
    )
    found = some.resized((20, 10), (40, 30))
    assert found.points.tolist() == [[[15, 20, 2], [3, 4, 0]]]
    assert found.areas.tolist() == [600]
    assert found.take(np.array([False])).points.shape == (0, 2, 3)


@pytest.mark.slow
def test_the_loss_learns_points_too() -> None:
    made = recipe()
    made.module.train().to(memory_format=torch.channels_last)
    for precision in (torch.float32, torch.bfloat16):
        batch = made.collate(
            [made.example(image(number), Random(number)) for number in (0, 1)], training=True
        )
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            parts = made.loss(made.module(*batch.inputs), batch)
        assert float(parts["loss_keypoint"].detach()) > 1
    torch.stack([*parts.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for group in made.parameters() for tensor in group.tensors)


@pytest.mark.slow
def test_a_validation_judges_points_by_the_given_sigmas() -> None:
    made = recipe()
    assert made.metric == "keypoint_AP50"
    truth = made.collate([made.example(image(number), None) for number in range(4)], training=False).truth
    moved = np.array([[4.0, 0, 0]], np.float32)
    found = [replace(one, scores=np.ones(1, np.float32), points=one.points + moved) for one in truth]
    pairs = list(zip(found, truth, strict=True))
    strict, loose = made.measure(pairs), recipe(replace(DETAILS, sigmas=(0.4,) * 3)).measure(pairs)
    assert strict["AP50"] == loose["AP50"] == 1
    assert strict["keypoint_AP"] < loose["keypoint_AP"] == 1
    for one, other in zip(found, truth, strict=True):  # By the formula itself.
        area = float(other.areas[0])
        similarity = np.mean([np.exp(-16 / (2 * area * (2 * sigma) ** 2)) for sigma in tiny.SIGMAS])
        values = recipe().measure([(one, other)])
        expected = np.mean([similarity >= 0.5 + 0.05 * step for step in range(10)])
        assert values["keypoint_AP"] == pytest.approx(float(expected))


def test_unlabelled_points_are_no_mistake() -> None:
    made = recipe()
    points = [{"x": 0.0, "y": 0.0, "visibility": 0.0}] * 3
    (target,) = made.collate([made.example(image(0, keypoints=points), None)], training=True).inputs[2][:1]
    assert target["keypoints"][..., 2].sum() == 0
    (target,) = made.collate([made.example(image(0, keypoints=None), None)], training=True).inputs[2][:1]
    assert target["keypoints"].shape == (1, 3, 3)


def test_another_number_of_points_is_refused() -> None:
    points = [{"x": 0.0, "y": 0.0, "visibility": 0.0}] * 5
    with pytest.raises(ValueError, match=r"an object has 5 keypoints, task\.sigmas are of 3"):
        recipe().example(image(0, keypoints=points), None)


# What training begins with


@pytest.mark.slow
def test_a_network_of_other_points_gets_a_new_last_layer(tmp_path: Path) -> None:
    name = "keypointrcnn_mobilenet_v3_small_fpn"
    whole = build_detector(Choice(name, "random:5"), ["keypoints"])
    state = whole.module.get_submodule("module").state_dict()
    assert len(state["roi_heads.keypoint_predictor.kps_score_lowres.bias"]) == 17
    save_file(state, tmp_path / "whole.safetensors")
    new = recipe(weights=str(tmp_path / "whole.safetensors"), strategy="all").module.state_dict()
    for key, tensor in state.items():
        own = new[f"network.module.{key}"]
        if "kps_score_lowres" in key or "box_predictor" in key:
            assert own.shape == tensor.shape or "kps" in key
        else:
            assert torch.equal(own, tensor)
    assert len(new["network.module.roi_heads.keypoint_predictor.kps_score_lowres.bias"]) == 3


# The fields of the task


def test_without_sigmas_they_are_cocos() -> None:
    details = Keypoints(model="keypointrcnn_resnet50_fpn").details()
    assert details.sigmas == tuple(SIGMAS)
    assert (
        details.swapped == SWAPPED == ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
    )


def test_which_points_swap_has_to_be_said() -> None:
    task = Keypoints(model=tiny.MODEL, weights="random", sigmas=tiny.SIGMAS)
    with pytest.raises(UserError, match=r"task\.swapped: which points change places"):
        task.recipe(Train(), DATA)
    assert task.model_copy(update={"swapped": ()}).details().swapped == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"swapped": [[0, 3]]}, "expected points below 3, of which there are sigmas; got .*0, 3"),
        ({"swapped": [[0, 1], [1, 2]]}, "expected each point once at most"),
        ({"sigmas": [0.1, -0.1, 0.1]}, "greater than 0"),
        ({"sigmas": []}, "at least 1"),
    ],
)
def test_impossible_points_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Keypoints.model_validate({"sigmas": [0.1, 0.1, 0.1], **fields})
