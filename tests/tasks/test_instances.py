"""Instance segmentation: torchvision's own masks as run lengths, judged as pycocotools judges them."""

from __future__ import annotations

import copy
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.models import Choice
from cnnbatch.models.detectors import build_detector
from cnnbatch.tasks.detect import ObjectDetector
from cnnbatch.tasks.instances import Instances
from cnnbatch.types import Runtime
from tests import tiny_instances as tiny
from tests.tasks.test_detect import pictures
from tests.tasks.test_task_contract import predict

SIZES = ((60, 80), (120, 70), (48, 200), (300, 400))


@pytest.fixture(scope="module")
def model() -> ObjectDetector:
    torch.manual_seed(0)
    task = Instances(model="tests.tiny_instances:detector", score_threshold=0.0)
    return ObjectDetector(task, tiny.detector(), Runtime("cpu"))


@pytest.mark.slow
def test_masks_equal_torchvisions_own_pipeline(model: ObjectDetector) -> None:
    torch.manual_seed(0)
    whole: Any = copy.deepcopy(tiny.detector().module.get_submodule("module"))
    whole.transform = GeneralizedRCNNTransform(64, 96, [0.0] * 3, [1.0] * 3)
    whole.roi_heads.score_thresh = 0.0
    whole.eval()
    rows = predict(model, pictures(SIZES)).to_pylist()
    for picture, row in zip(pictures(SIZES), rows, strict=True):
        with torch.inference_mode():
            expected = whole([picture.pixels.float() / 255])[0]
        assert [one["score"] for one in row["objects"]] == pytest.approx(
            expected["scores"].tolist(), abs=1e-4
        )
        inside = expected["masks"][:, 0] > 0.5
        assert inside.any()
        for one, mask in zip(row["objects"], inside.numpy(), strict=True):
            found = tiny.inside(one["mask"])
            assert found.shape == picture.size
            assert (found != mask).sum() <= max(2, 0.002 * mask.size)  # The network's own rounding.


def test_masks_of_the_same_outputs_equal_torchvisions_string_by_string(model: ObjectDetector) -> None:
    for image in pictures(SIZES):
        (prepared,) = model.prepare(image)
        lists = model.forward(prepared.pixels[None], torch.tensor([prepared.size]))
        found = {name: values[0] for name, values in lists.items()}
        (row,) = model.rows([image], [[prepared]], [[found]]).to_pylist()
        original = resize_boxes(found["boxes"], [*prepared.size], [*image.size])
        pasted = paste_masks_in_image(found["masks"], original, image.size)[:, 0] > 0.5
        assert [one["mask"] for one in row["objects"]] == [tiny.run_lengths(one.numpy()) for one in pasted]


def test_a_picture_without_objects_has_an_empty_list() -> None:
    task = Instances(model="tests.tiny_instances:detector", score_threshold=1.0)
    found = ObjectDetector(task, tiny.detector(), Runtime("cpu"))
    rows = predict(found, pictures()[:2])
    assert rows.schema == task.columns()
    assert rows["objects"].to_pylist() == [[], []]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fasterrcnn_resnet50_fpn", "gives no masks\n  expected one of maskrcnn_resnet50_fpn, .*_v2"),
        ("keypointrcnn_mobilenet_v2_fpn", "gives no masks"),
        ("maskrcnn_resnet50_fnp", "did you mean maskrcnn_resnet50_fpn"),
        ("maskrcnn_mobilenet_v9_fpn", "maskrcnn_BACKBONE_fpn with any classifier of torchvision"),
        ("yolov3_tiny", "no detector of masks is called 'yolov3_tiny'"),
        ("tests.toy:poses", "expected to give for each picture boxes, scores, labels, masks"),
    ],
)
def test_models_without_masks_are_told(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        build_detector(Choice(name, "random"), ["masks"])


# Whole jobs


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Return the output of a job on COCO's truth by a network that sees colours."""
    truth = tiny.write_coco(tmp_path / "coco", 12)
    cnnbatch.run(
        "instances",
        quiet=True,
        task={"model": "tests.tiny_instances:seeing", "weights": "random", "score_threshold": 0.0},
        input={"url": str(truth)},
        output=str(tmp_path / "out"),
        compute={"pool": "inline"},
    )
    return tmp_path / "out"


def test_a_whole_job_is_judged_by_its_masks_as_pycocotools_judges(judged: Path) -> None:
    rows = cnnbatch.open(judged).arrow(["key", "objects"]).to_pylist()
    ids = {f"{number:03}.png": number for number in range(12)}
    entries = [
        {
            "image_id": ids[row["key"]],
            "category_id": tiny.CLASSES.index(one["label"]) + 1,
            "segmentation": {**one["mask"], "counts": one["mask"]["counts"].encode()},
            "score": one["score"],
        }
        for row in rows
        for one in row["objects"]
    ]
    assert len(entries) > 20
    with redirect_stdout(StringIO()):
        truth = COCO(str(judged.parent / "coco" / "instances.json"))
        oracle = COCOeval(truth, truth.loadRes(entries), "segm")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    found = cnnbatch.open(judged).evaluation()
    assert found is not None
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    values = [found.metrics[f"mask_{name}"].value for name in names]
    expected = [None if value == -1 else value for value in oracle.stats]
    assert values == pytest.approx(expected, abs=1e-12)
    assert 0.2 < json.loads((judged / "evaluation.json").read_text())["metrics"]["mask_AP"]["value"] < 0.99


def test_the_report_draws_the_masks(judged: Path) -> None:
    page = (judged / "report.html").read_text()
    assert "mask_AP50" in page or "by masks" in page
    inside = [
        np.frombuffer(one["mask"]["counts"].encode(), np.uint8)
        for row in cnnbatch.open(judged).arrow(["objects"]).to_pylist()
        for one in row["objects"]
    ]
    assert all(len(one) for one in inside)
