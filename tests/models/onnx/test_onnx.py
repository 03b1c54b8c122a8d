"""ONNX files: each adapter against plain torch, their tensors as weights, and what is refused."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as Pictures
from torch import Tensor, nn

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.job import parse_job
from cnnbatch.models import Choice, Resizing, build_classifier, passes
from cnnbatch.models.detectors import build_detector
from cnnbatch.models.onnx.module import OnnxModule
from cnnbatch.models.resizing import prepare
from cnnbatch.models.runtime.backends import Unavailable
from cnnbatch.models.weights import files as weights
from cnnbatch.models.weights import onnx_files
from cnnbatch.tasks.classify import Classify
from cnnbatch.tasks.detect import Detect
from cnnbatch.types import Backend, Image, ImageRef, Runtime
from tests.tasks.test_task_contract import predict

ABC = ("a", "b", "c")
SIDE = 64
needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="OpenVINO is not installed")


# --- Files to read ---


def export(module: nn.Module, path: Path, example: Any = None, **options: Any) -> Path:
    """Write a module as torch's exporter does, by default for any number of pictures of 64 x 64."""
    free = {"dynamic_axes": {"images": {0: "n"}}} if example is None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own exporter
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, SIDE, SIDE) if example is None else example,),
            path,
            dynamo=False,
            input_names=["images"],
            **{**free, **options},
        )
    return path


def describe(path: Path, **metadata: object) -> Path:
    """Add metadata, as text."""
    model = onnx.load(path)
    helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    onnx.save(model, path)
    return path


def graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    tensors: Sequence[TensorProto] = (),
    types: Mapping[str, int] | None = None,
) -> Path:
    """Write a graph made by hand, of float32 unless ``types`` says otherwise."""
    kinds = types or {}
    first, last = (
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in these.items()
        ]
        for these in (inputs, outputs)
    )
    made = helper.make_graph(nodes, "made", first, last, tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


class Small(nn.Module):
    """A classifier of five classes."""

    def __init__(self, ending: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 5)
        self.ending = ending or nn.Identity()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.ending(20 * self.head(self.features(images).flatten(1)))
        return found


class Yolo(nn.Module):
    """Boxes and scores at every eighth pixel: (N, 4 + C, R), or with an objectness (N, R, 5 + C)."""

    def __init__(self, classes: int = 3, has_objectness: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.has_objectness = has_objectness
        self.cells = nn.Conv2d(3, 4 + classes + has_objectness, 8, 8)
        nn.init.normal_(self.cells.weight, std=0.5)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.cells(images - 0.4).flatten(2).sigmoid()  # [N, columns, R]
        rows = torch.cat((rows[:, :2] * SIDE, rows[:, 2:4] * SIDE / 2, rows[:, 4:]), 1)
        return rows.transpose(1, 2) if self.has_objectness else rows


class Table(nn.Module):
    """Detections with suppression done: (N, 4, 6), the last row empty."""

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.tensor(
            [[8.0, 20, 40, 44, 0.9, 2], [8, 20, 40, 45, 0.3, 2], [0, 16, 64, 48, 0.6, 0], [0, 0, 0, 0, 0, 0]]
        )
        return rows + 0 * images.mean((1, 2, 3))[:, None, None]


class Detr(nn.Module):
    """Seven queries for three classes and for nothing; boxes lie inside the picture."""

    def __init__(self, columns: int = 4) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.columns = columns
        self.features = nn.Sequential(nn.Conv2d(3, 7 * (columns + 4), 16, 16), nn.AdaptiveAvgPool2d(1))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.features(images).view(-1, 7, self.columns + 4)
        return 9 * queries[..., :-4], (6 * queries[..., -4:]).sigmoid()


def pictures(*sizes: tuple[int, int]) -> list[Image]:
    """Return pictures of (height, width), or three usual ones."""
    found = []
    for number, size in enumerate(sizes or ((64, 64), (48, 90), (120, 77))):
        coarse = torch.rand((1, 3, 6, 7), generator=torch.Generator().manual_seed(number))
        pixels = nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].clamp(0, 1)
        found.append(Image(ImageRef(f"{number}.jpg", "/p"), (pixels * 255).to(torch.uint8), size))
    return found


def noise(count: int, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(9))


# --- Running ---


@pytest.mark.parametrize("pictures_at_once", [None, 1, 2])
def test_any_number_of_pictures_runs_also_where_the_file_takes_a_fixed_one(
    tmp_path: Path, pictures_at_once: int | None
) -> None:
    module = Small()
    example = None if pictures_at_once is None else noise(pictures_at_once)
    file = onnx_files.read(export(module, tmp_path / "m.onnx", example, output_names=["logits"]))
    network = OnnxModule(file, (SIDE, SIDE))
    for count in 1, 3, 4:
        found = network(noise(count))["logits"]
        assert torch.allclose(found, module(noise(count)), atol=1e-5)


def test_pictures_without_a_batch_and_in_halves_run_one_by_one(tmp_path: Path) -> None:
    one = helper.make_tensor("one", TensorProto.FLOAT16, [], [0.5])
    path = graph(
        tmp_path / "half.onnx",
        [
            helper.make_node("Mul", ["images", "one"], ["scaled"]),
            helper.make_node("ReduceMean", ["scaled"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "axis"], ["logits"]),
        ],
        {"images": [3, "h", "w"]},
        {"logits": [1, 3]},
        [one, helper.make_tensor("axis", TensorProto.INT64, [1], [0])],
        {"images": TensorProto.FLOAT16, "logits": TensorProto.FLOAT16},
    )
    found = OnnxModule(onnx_files.read(path), (8, 8))(noise(3, 8, 9))["logits"]
    assert found.dtype == torch.float32
    assert torch.allclose(found, noise(3, 8, 9).mean((2, 3)) / 2, atol=1e-3)


@needs_openvino
def test_openvino_computes_the_same(tmp_path: Path) -> None:
    module = Small()
    path = export(module, tmp_path / "m.onnx", output_names=["logits"])
    network = OnnxModule(onnx_files.read(path), (SIDE, SIDE))
    backends: tuple[Backend, ...] = ("openvino", "eager")
    for backend in backends:
        run = network.executable(Runtime("cpu", "fp32", backend, threads=2))
        first, second = run(noise(3))["logits"], run(1 - noise(3))["logits"]
        assert torch.allclose(first, module(noise(3)), atol=1e-4)  # and the second run left it alone
        assert torch.allclose(second, module(1 - noise(3)), atol=1e-4)


def test_what_a_backend_cannot_do_is_unavailable(tmp_path: Path) -> None:
    network = OnnxModule(onnx_files.read(export(Small(), tmp_path / "m.onnx")), (SIDE, SIDE))
    with pytest.raises(Unavailable, match="ONNX Runtime"):
        network.executable(Runtime("cpu", "fp32", "compile"))
    with pytest.raises(Unavailable, match="not in bf16"):
        network.executable(Runtime("cpu", "bf16", "eager"))


# --- Classifiers ---


@pytest.mark.parametrize(
    "ending", [None, nn.Softmax(1), nn.LogSoftmax(1), nn.Sequential(nn.Softmax(1), nn.Flatten())]
)
def test_probabilities_are_torchs_wherever_the_softmax_lies(tmp_path: Path, ending: nn.Module | None) -> None:
    path = export(Small(ending), tmp_path / "m.onnx")
    task = Classify(
        model="onnx",
        weights=str(path),
        classes=("v", "w", "x", "y", "z"),
        probabilities=True,
    )
    model = task.load(Runtime("cpu"))
    rows = predict(model, pictures()).to_pylist()
    how = build_classifier(task.choice({})).preprocessing
    assert (how.resize, how.crop) == (73, (SIDE, SIDE))
    inputs = torch.stack([model.prepare(one)[0].pixels for one in pictures()]).float() / 255
    normal = (inputs - torch.tensor(how.mean).view(3, 1, 1)) / torch.tensor(how.std).view(3, 1, 1)
    expected = Small()(normal).softmax(1)
    for row, wanted in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert row["label"] == "vwxyz"[int(wanted.argmax())]
    assert dict(model.identity)["weights"] == weights.digest(path)
    assert dict(model.identity)["library"].startswith("onnxruntime 1.")


def test_classes_come_from_the_job_the_file_or_imagenet(tmp_path: Path) -> None:
    path = export(Small(), tmp_path / "m.onnx")
    with pytest.raises(
        UserError, match=r"m.onnx does not say what its 5 classes are called(.|\n)*give their names"
    ):
        build_classifier(Choice("onnx", str(path)))
    describe(path, names={3: "d", 0: "tv's", 1: "b", 2: "c", 4: "e"}, license="MIT")
    network = build_classifier(Choice("onnx", str(path)))
    assert (network.classes, network.licence) == (("tv's", "b", "c", "d", "e"), "MIT")
    given = Choice("onnx", str(path), classes=("1", "2", "3", "4", "5"), adapter="classify")
    assert build_classifier(given).classes == given.classes
    with pytest.raises(UserError, match=r"m.onnx has 5 classes, but task.classes has 3"):
        build_classifier(Choice("onnx", str(path), classes=ABC))
    wide = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    export(wide, tmp_path / "wide.onnx")
    assert build_classifier(Choice("onnx", str(tmp_path / "wide.onnx"))).classes[0] == "tench"


@pytest.mark.parametrize(
    "names", ["{0: 'a', 2: 'b'}", "__import__('os').getcwd()", "(" * 500, "{0: 'a', 1: 'a'}", "7"]
)
def test_names_in_a_file_are_data_and_nothing_else(tmp_path: Path, names: str) -> None:
    path = describe(export(Small(), tmp_path / "m.onnx"), names=names)
    with pytest.raises(UserError, match=r"task.classes"):
        build_classifier(Choice("onnx", str(path)))


def test_a_classifier_of_ultralytics_is_prepared_as_its_makers_do(tmp_path: Path) -> None:
    path = export(Small(nn.Softmax(1)), tmp_path / "m.onnx")
    describe(path, names=list("abcde"), author="Ultralytics", task="classify")
    how = build_classifier(Choice("onnx", str(path))).preprocessing
    assert (how.resize, how.crop, how.mean, how.std) == (SIDE, (SIDE, SIDE), (0, 0, 0), (1, 1, 1))


def test_what_is_no_classifier_is_told(tmp_path: Path) -> None:
    sigmoid = str(export(Small(nn.Sigmoid()), tmp_path / "sigmoid.onnx"))
    two = str(export(Detr(), tmp_path / "two.onnx"))
    plain = str(export(Small(), tmp_path / "plain.onnx"))
    for choice, expected in (
        (Choice("onnx", sigmoid), "ends in a sigmoid"),
        (Choice("onnx", two), "expects two.onnx to give logits or probabilities"),
        (
            Choice("onnx", plain, preprocessing={"crop": (32, 32)}),
            "takes pictures of 64 x 64 only, got 32 x 32",
        ),
        (Choice("onnx", plain, key_map="efficientnet_lite0"), "keeps its own names"),
        (Choice("onnx", plain, sha256="0" * 64), "expected SHA-256"),
        (Choice("onnx"), "expected a path, a URL or package:NAME/PATH that ends in .onnx, got DEFAULT"),
        (Choice("onnx", "random"), "got random"),
        (Choice("onnx", str(tmp_path / "absent.onnx")), "there is no file"),
    ):
        with pytest.raises(UserError) as caught:
            build_classifier(choice)
        assert expected in str(caught.value)


# --- YOLO ---


def suppressed(
    boxes: Tensor, scores: Tensor, least: float, iou: float
) -> list[tuple[int, float, list[float]]]:
    """Return (class, score, box) by the book: each class by itself, the best box first."""
    found = []
    for label in range(scores.shape[1]):
        left = [
            int(place) for place in scores[:, label].argsort(descending=True) if scores[place, label] > least
        ]
        while left:
            best = left.pop(0)
            found.append((label, float(scores[best, label]), boxes[best].tolist()))
            overlaps = torchvision.ops.box_iou(boxes[best][None], boxes[left])[0] if left else []
            left = [place for place, overlap in zip(left, overlaps, strict=True) if overlap <= iou]
    return sorted(found, key=lambda one: -one[1])


def letterboxed(pixels: Tensor) -> tuple[Tensor, float, int, int]:
    """Return Ultralytics' LetterBox of a picture, by OpenCV: floats, gain, left and top."""
    array = pixels.permute(1, 2, 0).numpy()
    height, width = array.shape[:2]
    gain = min(SIDE / height, SIDE / width)
    new_width, new_height = round(width * gain), round(height * gain)
    left, top = (SIDE - new_width) / 2, (SIDE - new_height) / 2
    if (new_width, new_height) != (width, height):
        array = cv2.resize(array, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    edges = round(top - 0.1), round(top + 0.1), round(left - 0.1), round(left + 0.1)
    array = cv2.copyMakeBorder(array, *edges, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    return torch.from_numpy(array).permute(2, 0, 1) / 255, gain, edges[2], edges[0]


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=30, deadline=None)
def test_a_letterbox_is_that_of_ultralytics(size: tuple[int, int]) -> None:
    how = Resizing("letterbox", (SIDE, SIDE), fill=114 / 255, rounding="nearest")
    if min(how.resized(size)) == 1:
        return  # OpenCV refuses a side of nothing
    (picture,) = pictures(size)
    expected, _, left, top = letterboxed(picture.pixels)
    found = prepare(picture.pixels, how)
    assert found.offset == (top, left)
    assert float((found.pixels - expected).abs().max()) <= 1.01 / 255


@pytest.mark.parametrize(("has_objectness", "iou"), [(False, 0.7), (True, 0.6)])
def test_a_yolos_boxes_are_those_of_plain_torch(tmp_path: Path, has_objectness: bool, iou: float) -> None:
    module = Yolo(has_objectness=has_objectness)
    path = describe(
        export(module, tmp_path / "y.onnx"), names=dict(enumerate(ABC)), task="detect", imgsz=[64, 64]
    )
    task = Detect(model="onnx", weights=str(path), adapter="yolo", score_threshold=0.3)
    model = task.load(Runtime("cpu"))
    rows = predict(model, pictures()).to_pylist()
    for picture, row in zip(pictures(), rows, strict=True):
        _, gain, left, top = letterboxed(picture.pixels)
        columns = module(model.prepare(picture)[0].pixels[None])[0]
        columns = columns if has_objectness else columns.T
        scores = columns[:, 4:5] * columns[:, 5:] if has_objectness else columns[:, 4:]
        boxes = torchvision.ops.box_convert(columns[:, :4], "cxcywh", "xyxy")
        expected = suppressed(boxes, scores, 0.3, iou)
        assert len(row["objects"]) == len(expected) > 3
        height, width = picture.size
        limit = torch.tensor([width, height] * 2)
        for found, (label, score, box) in zip(row["objects"], expected, strict=True):
            assert (found["label"], found["score"]) == (ABC[label], pytest.approx(score, abs=1e-5))
            back = (torch.tensor(box) - torch.tensor([left, top] * 2)) / gain
            wanted = back.clamp(min=0).minimum(limit).tolist()
            assert list(found["box"].values()) == pytest.approx(wanted, abs=0.4)


def test_the_layouts_of_a_yolo_are_told_apart(tmp_path: Path) -> None:
    class Shaped(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.shape = shape

        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(1, *self.shape) + 0 * images.mean((1, 2, 3))[:, None, None]

    def kind(*shape: int, classes: int | None, **metadata: object) -> tuple[str, bool]:
        path = describe(export(Shaped(*shape), tmp_path / "y.onnx"), **metadata)
        names = None if classes is None else tuple(f"class {number}" for number in range(classes))
        head: Any = build_detector(Choice("onnx", str(path), classes=names, adapter="yolo")).module._head
        return head.kind, head.columns_first

    assert kind(84, 300, classes=None) == ("scores", True)
    assert kind(300, 85, classes=None) == ("objectness", False)
    assert kind(300, 84, classes=80) == ("scores", False)
    assert kind(5, 200, classes=1) == ("scores", True)
    assert kind(3 * 84, 6, classes=1) == ("objectness", False)  # three anchors a cell of 64 x 64
    assert kind(300, 6, classes=1) == ("suppressed", False)
    assert kind(300, 6, classes=80, args={"nms": True}) == ("suppressed", False)
    assert kind(3 * 84, 6, classes=1, end2end=True) == ("suppressed", False)
    for shape, classes, metadata, expected in (
        ((84, 85), 80, {}, "expects y.onnx to give for 80 classes one table of (N, 84, boxes)"),
        ((20, 300), 80, {}, "for one picture it gives"),
        ((20, 300), None, {}, "does not say what its classes are called"),
        ((300, 6), None, {}, "does not say what its classes are called"),
        ((84, 300), 80, {"args": {"nms": True}}, "(N, boxes, 6)"),
        ((84, 300), 80, {"task": "segment"}, "says that it is for segment"),
    ):
        with pytest.raises(UserError) as caught:
            kind(*shape, classes=classes, **metadata)
        assert expected in str(caught.value)


def test_a_yolo_without_names_has_cocos_where_it_has_eighty_classes(tmp_path: Path) -> None:
    path = export(Yolo(80), tmp_path / "y.onnx")
    found = build_detector(Choice("onnx", str(path), adapter="yolo"))
    assert (found.classes[0], found.classes[-1], found.ids[-1]) == ("person", "toothbrush", 90)


def test_suppression_inside_a_file_is_kept_and_its_empty_rows_are_not(tmp_path: Path) -> None:
    path = describe(export(Table(), tmp_path / "y.onnx"), names=list(ABC), args={"nms": True})
    task = Detect(model="onnx", weights=str(path), adapter="yolo", score_threshold=0.0)
    rows = predict(task.load(Runtime("cpu")), pictures((100, 200))).to_pylist()
    gain = 200 / 64
    assert rows[0]["objects"] == [
        {
            "label": label,
            "score": pytest.approx(score),
            "box": {"x1": x1 * gain, "y1": (y1 - 16) * gain, "x2": x2 * gain, "y2": (y2 - 16) * gain},
        }
        for label, score, x1, y1, x2, y2 in (
            ("c", 0.9, 8, 20, 40, 44),
            ("a", 0.6, 0, 16, 64, 48),
            ("c", 0.3, 8, 20, 40, 45),
        )
    ]


def test_a_yolo_of_any_size_says_which_or_the_job_does(tmp_path: Path) -> None:
    path = export(Yolo(), tmp_path / "y.onnx", dynamic_axes={"images": {0: "n", 2: "h", 3: "w"}})
    choice = Choice("onnx", str(path), classes=ABC, adapter="yolo")
    with pytest.raises(UserError, match=r"give the \(height, width\) that it was trained with"):
        build_detector(choice)
    sized = Choice("onnx", str(path), classes=ABC, adapter="yolo", preprocessing={"size": (32, 64)})
    assert build_detector(sized).resizing.size == (32, 64)
    describe(path, imgsz=[96, 64])
    assert build_detector(choice).resizing.size == (96, 64)
    assert build_detector(sized).resizing.size == (32, 64)
    fixed = Choice(
        "onnx", str(export(Yolo(), path)), classes=ABC, adapter="yolo", preprocessing={"size": (32, 64)}
    )
    with pytest.raises(UserError, match="task.size: y.onnx takes pictures of 64 x 64 only"):
        build_detector(fixed)


@needs_openvino
def test_a_yolo_runs_by_openvino(tmp_path: Path) -> None:
    path = describe(export(Yolo(), tmp_path / "y.onnx"), names=list(ABC))
    module: Any = build_detector(Choice("onnx", str(path), adapter="yolo")).module
    sizes = torch.tensor([[SIDE, SIDE]] * 2)
    expected = module(noise(2), sizes)
    found = module.executable(Runtime("cpu", "fp32", "openvino", 2))(noise(2), sizes)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one["scores"], other["scores"], atol=1e-4)


# --- DETR ---


@pytest.mark.parametrize("is_fixed", [False, True])
def test_detrs_boxes_are_those_of_plain_torch(tmp_path: Path, is_fixed: bool) -> None:
    module = Detr()
    free = {"dynamic_axes": {"images": {0: "n", 2: "h", 3: "w"}}}
    path = export(
        module, tmp_path / "d.onnx", output_names=["logits", "pred_boxes"], **({} if is_fixed else free)
    )
    task = Detect(model="onnx", weights=str(path), adapter="detr", classes=ABC)
    images = pictures((60, 80), (120, 100))
    rows = predict(task.load(Runtime("cpu")), images).to_pylist()
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    for image, row in zip(images, rows, strict=True):
        shape = (SIDE, SIDE) if is_fixed else ((800, 1066) if image.size == (60, 80) else (960, 800))
        resized = nn.functional.interpolate(
            image.pixels[None] / 255, size=shape, mode="bilinear", antialias=True
        )
        if not is_fixed:
            assert min(shape) == 800
        inputs = torchvision.transforms.functional.normalize(resized, preset.mean, preset.std)
        logits, boxes = module(inputs)
        best = logits[0].softmax(-1)[:, :3].max(-1)
        order = best.values.argsort(descending=True)
        height, width = image.size
        centre, side = boxes[0, :, :2], boxes[0, :, 2:]
        edges = torch.cat((centre - side / 2, centre + side / 2), 1) * torch.tensor([width, height] * 2)
        limit = torch.tensor([width, height] * 2)
        assert [one["label"] for one in row["objects"]] == [ABC[best.indices[place]] for place in order]
        for one, place in zip(row["objects"], order, strict=True):
            assert one["score"] == pytest.approx(float(best.values[place]), abs=1e-3)
            wanted = edges[place].clamp(min=0).minimum(limit)
            assert list(one["box"].values()) == pytest.approx(wanted.tolist(), abs=0.1)


def test_a_detr_that_asks_for_a_mask_is_told_that_all_is_picture(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, images: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
            filled = pixel_mask.float().mean((1, 2))[:, None, None]
            levels = images.mean((1, 2, 3))[:, None, None]
            return filled + levels + torch.tensor([[[0.0, 5.0]]]), filled * 0.5 + 0 * levels.expand(-1, 1, 4)

    path = tmp_path / "d.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Masked(),
            (noise(1), torch.ones(1, 64, 64, dtype=torch.int64)),
            path,
            dynamo=False,
            input_names=["pixel_values", "pixel_mask"],
            output_names=["logits", "pred_boxes"],
            dynamic_axes={"pixel_values": {0: "n", 2: "h", 3: "w"}, "pixel_mask": {0: "n"}},
        )
    found = build_detector(Choice("onnx", str(path), classes=("cat",), adapter="detr"))
    (one, two) = found.module(noise(2, 80, 120), torch.tensor([[80, 120]] * 2))
    assert one["boxes"].tolist() == [[30.0, 20.0, 90.0, 60.0]] == two["boxes"].tolist()


def test_what_is_no_detr_is_told(tmp_path: Path) -> None:
    path = str(export(Detr(), tmp_path / "d.onnx", output_names=["pred_logits", "pred_boxes"]))
    coco = build_detector(Choice("onnx", str(export(Detr(92), tmp_path / "coco.onnx")), adapter="detr"))
    assert (coco.classes[1], coco.classes[90], coco.ids[90]) == ("person", "toothbrush", 90)
    small = str(export(Small(), tmp_path / "small.onnx"))
    for choice, expected in (
        (Choice("onnx", path, classes=("a", "b", "c", "d"), adapter="detr"), "one for no object"),
        (Choice("onnx", path, classes=("a", "b"), adapter="detr"), "d.onnx has 3 classes"),
        (Choice("onnx", path, adapter="detr"), "does not say what its 3 classes are called"),
        (Choice("onnx", small, classes=ABC, adapter="detr"), "expects small.onnx to give logits"),
        (Choice("onnx", path, classes=ABC), "task.adapter: expected torchvision, yolo, detr, got nothing"),
        (Choice("onnx", path, classes=ABC, adapter="classify"), "got classify"),
    ):
        with pytest.raises(UserError) as caught:
            build_detector(choice)
        assert expected in str(caught.value)


# --- torchvision ---


@pytest.fixture(scope="module")
def reference() -> Any:
    """Return a small detector of torchvision with random weights that see objects."""
    torch.manual_seed(0)
    return torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=96,
        max_size=160,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=9,
    ).eval()


@pytest.fixture(scope="module")
def exported(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "frcnn.onnx"
    free = {"images": {2: "h", 3: "w"}}
    return export(reference, path, noise(1, 96, 128), dynamic_axes=free, opset_version=17)


@pytest.mark.slow
def test_boxes_of_an_exported_detector_are_torchvisions(reference: Any, exported: Path) -> None:
    task = Detect(model="onnx", weights=str(exported), adapter="torchvision", classes=ABC)
    model = task.load(Runtime("cpu"))
    images = pictures((60, 80), (120, 70), (60, 80))
    assert model.prepare(images[0])[0].pixels.dtype == torch.uint8
    rows = predict(model, images).to_pylist()
    for image, row in zip(images, rows, strict=True):
        with torch.inference_mode():
            expected = reference([image.pixels / 255])[0]
        assert [one["score"] for one in row["objects"]] == pytest.approx(
            expected["scores"].tolist(), abs=1e-4
        )
        assert len(row["objects"]) == 9
        for one, box, label in zip(row["objects"], expected["boxes"], expected["labels"], strict=True):
            assert one["label"] == ("", *ABC)[label]
            assert list(one["box"].values()) == pytest.approx(box.tolist(), abs=0.05)


@pytest.mark.slow
def test_a_jobs_size_bounds_what_an_exported_detector_gets(exported: Path) -> None:
    task = Detect(model="onnx", weights=str(exported), adapter="torchvision", classes=ABC, size=(96, 160))
    model = task.load(Runtime("cpu"))
    assert model.prepare(pictures((960, 1200))[0])[0].pixels.shape == (3, 96, 120)


def test_outputs_of_a_detector_are_found_by_what_they_are(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            nothing = 0 * images.mean()
            labels = torch.tensor([2, 1]) + nothing.long()
            return (
                torch.tensor([0.4, 0.7]) + nothing,
                labels,
                torch.tensor([[0.0, 0, 8, 8], [16, 32, 48, 64]]) + nothing,
            )

    path = export(Fixed(), tmp_path / "f.onnx", noise(1), output_names=["boxes", "scores", "labels"])
    task = Detect(model="onnx", weights=str(path), adapter="torchvision", classes=ABC)
    (row,) = predict(task.load(Runtime("cpu")), pictures((32, 128))).to_pylist()  # stretched to 64 x 64
    assert [(one["label"], list(one["box"].values())) for one in row["objects"]] == [
        ("a", [32, 16, 96, 32]),
        ("b", [0, 0, 16, 4]),
    ]
    with pytest.raises(UserError, match="gives labels from 1 to 2, but only 2 have names"):
        build_detector(Choice("onnx", str(path), classes=("a",), adapter="torchvision"))
    with pytest.raises(UserError, match="no layer is a multiple of 91 wide"):
        build_detector(Choice("onnx", str(path), adapter="torchvision"))
    table = str(export(Yolo(), tmp_path / "y.onnx"))
    with pytest.raises(UserError, match=r"expects y.onnx to give of one picture boxes \(K, 4\)"):
        build_detector(Choice("onnx", table, classes=ABC, adapter="torchvision"))


# --- Tensors as weights ---


def test_the_tensors_of_an_onnx_file_are_weights(tmp_path: Path) -> None:
    donor = build_classifier(Choice("squeezenet1_1", "random:3", classes=ABC)).module
    path = export(donor, tmp_path / "donor.onnx")
    network = build_classifier(Choice("squeezenet1_1", str(path), classes=ABC))
    assert network.weights == weights.digest(path)
    for name, tensor in donor.state_dict().items():
        assert torch.equal(network.module.state_dict()[name], tensor)
    with pytest.raises(UserError, match="donor.onnx has 3 classes"):
        build_classifier(Choice("squeezenet1_1", str(path)))


def test_a_key_map_renames_them_and_what_belongs_to_the_graph_stays_out(tmp_path: Path) -> None:
    ones = np.ones((2, 1, 3, 3), np.float32)
    tensors = [
        numpy_helper.from_array(ones, "onnx::Conv_7"),
        numpy_helper.from_array(np.arange(2, dtype=np.float16), "half.bias"),
        helper.make_tensor("brain.weight", TensorProto.BFLOAT16, [2], [1.5, -2.0]),
        numpy_helper.from_array(np.array([1, -1], np.int64), "onnx::Reshape_8"),
        numpy_helper.from_array(np.array(0.5, np.float32), "/Constant_output_0"),
        numpy_helper.from_array(np.array(4, np.int64), "norm.num_batches_tracked"),
    ]
    same = helper.make_node("Identity", ["half.bias"], ["other.bias"])
    path = graph(
        tmp_path / "m.onnx", [same], {}, {"other.bias": [2]}, tensors, {"other.bias": TensorProto.FLOAT16}
    )
    state = weights.load(path)
    assert set(state) == {
        "onnx::Conv_7",
        "half.bias",
        "other.bias",
        "brain.weight",
        "norm.num_batches_tracked",
    }
    assert (state["half.bias"].dtype, state["brain.weight"].dtype) == (torch.float16, torch.bfloat16)
    assert state["brain.weight"].tolist() == [1.5, -2.0]
    module = nn.Conv2d(1, 2, 3)
    chosen = {name: state[name] for name in ("onnx::Conv_7", "half.bias")}
    weights.apply(module, chosen, {"onnx::Conv_7": "weight", "half.bias": "bias"})
    assert torch.equal(module.weight, torch.ones(2, 1, 3, 3))
    assert module.bias is not None
    assert module.bias.tolist() == [0, 1]


# --- Pictures with the channels last, and pixels as they are ---


def with_channels_last(
    path: Path, sides: Sequence[int | str], pixels: bool = False, channels_last: bool = True
) -> Path:
    """Write a classifier of three classes: twenty times the means of the channels, from 0 to 1."""
    axes = [1, 2] if channels_last else [2, 3]
    axes = axes if len(sides) == 4 else [axis - 1 for axis in axes]
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("ReduceMean", ["floats"], ["means"], axes=axes, keepdims=0)]
    nodes += [helper.make_node("Mul", ["means", "scale"], ["scaled"])]
    nodes += [helper.make_node("Reshape", ["scaled", "shape"], ["logits"])]
    tensors = [
        numpy_helper.from_array(np.array(20 / 255 if pixels else 20, np.float32), "scale"),
        numpy_helper.from_array(np.array([-1, 3]), "shape"),
    ]
    kinds = {"images": TensorProto.UINT8} if pixels else {}
    return graph(path, nodes, {"images": sides}, {"logits": ["n", 3]}, tensors, kinds)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize(
    ("sides", "channels_last"),
    [
        (["n", 8, 12, 3], True),
        ([2, 8, 12, 3], True),
        (["n", "h", "w", 3], True),
        ([8, 12, 3], True),
        (["n", 3, 8, 12], False),
    ],
)
def test_a_classifier_takes_its_pictures_in_its_own_order(
    tmp_path: Path, sides: list[int | str], channels_last: bool, pixels: bool
) -> None:
    path = with_channels_last(tmp_path / "m.onnx", sides, pixels, channels_last)
    free: dict[str, Any] = {"crop": (8, 12)} if "h" in sides else {}
    network = build_classifier(Choice("onnx", str(path), classes=ABC, preprocessing=free))
    assert network.preprocessing.crop == (8, 12)
    assert (network.preprocessing.std == (1.0, 1.0, 1.0)) == pixels
    batch = torch.randint(0, 256, (3, 3, 8, 12), generator=torch.Generator().manual_seed(0)) / 255
    assert torch.allclose(network.module(batch), 20 * batch.mean((2, 3)), atol=1e-4)
    if find_spec("openvino"):
        run = network.module.executable(Runtime("cpu", backend="openvino"))  # type: ignore[operator]
        assert torch.allclose(run(batch), 20 * batch.mean((2, 3)), atol=1e-3)


def test_pixels_are_not_normalised_twice(tmp_path: Path) -> None:
    path = with_channels_last(tmp_path / "m.onnx", ["n", 8, 8, 3], pixels=True)
    mean = {"mean": (0.5, 0.5, 0.5)}
    with pytest.raises(UserError, match=r"task\.preprocessing\.mean: m\.onnx takes pixels from 0 to 255"):
        build_classifier(Choice("onnx", str(path), classes=ABC, preprocessing=mean))


@pytest.mark.parametrize("adapter", ["yolo", "detr"])
def test_a_detector_takes_its_pictures_in_its_own_order(tmp_path: Path, adapter: str) -> None:
    module, names = (Yolo(), ["rows"]) if adapter == "yolo" else (Detr(), ["logits", "pred_boxes"])
    made = export(module, tmp_path / "first.onnx", output_names=names)
    model = onnx.load(made)
    turned = helper.make_node("Transpose", ["turned"], ["images"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, turned)
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("turned", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])
    )
    last = tmp_path / "last.onnx"
    onnx.save(model, last)
    batch = torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    found = [
        build_detector(Choice("onnx", str(path), classes=ABC, adapter=adapter)).module(
            batch, torch.tensor([[SIDE, SIDE]])
        )[0]
        for path in (made, last)
    ]
    assert len(found[0]["boxes"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# --- Safety and damage ---


def outside(path: Path, place: str) -> Path:
    """Write a file that adds a tensor which lies in ``place``."""
    tensor = TensorProto(
        name="w.w", data_type=TensorProto.FLOAT, dims=[5], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", place), ("offset", "0"), ("length", "20")):
        tensor.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["column"]),
        helper.make_node("Add", ["column", "w.w"], ["logits"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    return graph(path, nodes, {"images": ["n", 3, 8, 8]}, {"logits": ["n", 5]}, [tensor, axis])


def test_tensors_beside_a_file_are_read_and_count_for_its_digest(tmp_path: Path) -> None:
    path = outside(tmp_path / "m.onnx", "m.data")
    with pytest.raises(UserError, match="'m.data', which is not there"):
        onnx_files.read(path)
    np.arange(5, dtype=np.float32).tofile(tmp_path / "m.data")
    before = weights.digest(path)
    assert weights.load(path)["w.w"].tolist() == [0, 1, 2, 3, 4]
    network = build_classifier(Choice("onnx", str(path), classes=tuple("abcde"), sha256=before))
    assert network.weights == before
    assert network.module(torch.zeros(1, 3, 8, 8)).tolist() == [[0, 1, 2, 3, 4]]
    np.ones(5, dtype=np.float32).tofile(tmp_path / "m.data")
    with pytest.raises(UserError, match="expected SHA-256"):
        weights.verify(path, before)


@pytest.mark.parametrize(
    "place",
    [
        "../secret",
        "{folder}/secret",
        "link",
        "circle",
        "*/_ORT_MEM_ADDR_/*",
        "",
        ".",
        "a\0b",
        "a/../../secret",
        "a" * 5000,
    ],
)
def test_tensors_outside_a_files_folder_are_never_read(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "models"
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    for secret in (tmp_path / "secret", folder / "*" / "_ORT_MEM_ADDR_" / "*"):
        np.ones(5, dtype=np.float32).tofile(secret)
    (folder / "link").symlink_to("../secret")
    (folder / "circle").symlink_to("circle")
    path = outside(folder / "m.onnx", place.format(folder=tmp_path))
    for read in (onnx_files.read, weights.load, weights.digest):
        with pytest.raises(UserError, match=r"outside its own folder|not there"):
            read(path)
    with pytest.raises(UserError, match=r"outside its own folder|not there"):
        build_classifier(Choice("onnx", str(path), classes=tuple("abcde")))


def elsewhere(
    dims: Sequence[int] = (5,), kind: int = TensorProto.FLOAT, name: str = "t", **entries: str
) -> TensorProto:
    """Return a tensor that lies in another file."""
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key.rstrip("_"), value=value)
    return tensor


def holders(tensor: TensorProto) -> dict[str, onnx.ModelProto]:
    """Return a model for each place where one may have a tensor."""
    sparse = onnx.SparseTensorProto(values=tensor, dims=[5])
    inner = helper.make_graph([], "inner", [], [], [tensor])
    indices = onnx.SparseTensorProto(indices=tensor, dims=[5])
    nodes = {
        "constant": helper.make_node("Constant", [], ["c"], value=tensor),
        "sparse_constant": helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        "tensors": helper.make_node("Odd", [], ["c"], values=[tensor]),
        "sparse_tensors": helper.make_node("Odd", [], ["c"], values=[sparse]),
        "branch": helper.make_node("If", ["x"], ["c"], then_branch=inner, else_branch=inner),
        "graphs": helper.make_node("Odd", [], ["c"], bodies=[inner]),
    }
    nodes["nested"] = helper.make_node(
        "Loop", ["x"], ["c"], body=helper.make_graph([nodes["branch"]], "outer", [], [])
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    same = helper.make_node("Identity", ["x"], ["y"])

    def model(*graph_nodes: onnx.NodeProto, **rest: Any) -> onnx.ModelProto:
        made = helper.make_graph([same, *graph_nodes], "g", [value], [], **rest)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])

    found = {name: model(node) for name, node in nodes.items()}
    found["initializer"] = model(initializer=[tensor])
    found["sparse_initializer"] = model(sparse_initializer=[sparse])
    found["sparse_indices"] = model(sparse_initializer=[indices])
    for name in ("function", "function_default", "training", "training_start"):
        found[name] = model()
    function = onnx.FunctionProto(name="f", domain="d", node=[nodes["nested"]])
    found["function"].functions.append(function)
    default = helper.make_attribute("a", tensor)
    found["function_default"].functions.append(
        onnx.FunctionProto(name="f", domain="d", attribute_proto=[default])
    )
    found["training"].training_info.append(onnx.TrainingInfoProto(algorithm=inner))
    found["training_start"].training_info.append(onnx.TrainingInfoProto(initialization=inner))
    return found


@pytest.mark.parametrize("place", [*holders(TensorProto())])
def test_a_tensor_outside_is_refused_wherever_a_model_has_it(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    np.ones(5, dtype=np.float32).tofile(tmp_path / "secret")
    model = holders(elsewhere(location="../secret"))[place]
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    for read in (onnx_files.read, onnx_files.other_files, weights.load):
        with pytest.raises(UserError, match="outside its own folder"):
            read(folder / "m.onnx")


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (elsewhere((6,), location="data"), "has 24 bytes and claims 24 from 0 on"),
        (elsewhere((5,), location="data", offset="4"), "claims 20 from 4 on of 'data', which has 20"),
        (elsewhere((5,), location="data", length="24"), "has 20 bytes and claims 24"),
        (elsewhere((5,), location="data", length="16"), "has 20 bytes and claims 16"),
        (elsewhere((1,), location="data", offset=str(2**64 - 4)), "no whole numbers"),
        (
            elsewhere((1,), location="data", offset=str(2**59), length="4"),
            "claims 4 from 576,460,752,303,423,488",
        ),
        (elsewhere((1,), location="data", offset="-4"), "no whole numbers"),
        (elsewhere((1,), location="data", offset="0x4"), "no whole numbers"),
        (elsewhere((1,), location="data", offset=" 4"), "no whole numbers"),
        (elsewhere((1,), location="data", offset="٤"), "no whole numbers"),
        (elsewhere((1,), location="data", length="1e1"), "no whole numbers"),
        (elsewhere((1,), location="data", length=""), "no whole numbers"),
        (elsewhere((-1,), location="data"), "no whole numbers"),
        (elsewhere((2**40, 2**40), location="data"), "claims 4,835,703,278,458,516,698,824,704 from"),
        (elsewhere((1,), TensorProto.UNDEFINED, location="data"), "no whole numbers"),
        (elsewhere((1,), 999, location="data"), "no whole numbers"),
        (elsewhere((1,), TensorProto.STRING, location="data"), "no whole numbers"),
        (elsewhere((1,), location="data", location_="data"), "says twice"),
        (elsewhere((41,), TensorProto.INT4, location="data"), "has 21 bytes"),
        (elsewhere(offset="0"), "outside its own folder"),
        (elsewhere(), "outside its own folder"),
    ],
)
def test_a_tensor_beyond_its_file_is_refused(tmp_path: Path, tensor: TensorProto, said: str) -> None:
    np.ones(5, dtype=np.float32).tofile(tmp_path / "data")
    path = tmp_path / "m.onnx"
    path.write_bytes(holders(tensor)["constant"].SerializeToString())
    for read in (onnx_files.read, weights.load):
        with pytest.raises(UserError) as caught:
            read(path)
        assert said in str(caught.value)


def test_a_tensor_that_its_file_holds_is_taken(tmp_path: Path) -> None:
    np.arange(5, dtype=np.float32).tofile(tmp_path / "data")
    for tensor in (
        elsewhere((5,), location="data"),
        elsewhere((2,), location="data", offset="8", length="8", checksum="a"),
        elsewhere((40,), TensorProto.INT4, location="data"),
        elsewhere((0,), location="data", offset="20"),
    ):
        (tmp_path / "m.onnx").write_bytes(holders(tensor)["initializer"].SerializeToString())
        assert onnx_files.other_files(tmp_path / "m.onnx") == [tmp_path / "data"]


def endless(path: Path) -> Path:
    """Write a classifier that goes round for 2^62 times."""
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("go", "x")],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Loop", ["turns", "always", "flat"], ["logits"], body=body),
    ]
    numbers = [
        numpy_helper.from_array(np.array(2**62), "turns"),
        numpy_helper.from_array(np.array(True), "always"),
    ]
    return graph(path, nodes, {"images": ["n", 3, 8, 8]}, {"logits": ["n", 3]}, numbers)


def test_a_file_that_never_ends_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cnnbatch.models.onnx.engines.trying", lambda stop=None, least_s=0.0: passes.trying(stop, 0.0)
    )
    Pictures.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    task = {"name": "classify", "model": "onnx", "weights": str(endless(tmp_path / "m.onnx")), "classes": ABC}
    with pytest.raises(
        UserError, match=r"m\.onnx gives nothing for a picture within compute\.batch_timeout_s"
    ):
        cnnbatch.run(
            "classify",
            task=task,
            input=tmp_path / "a.png",
            output=tmp_path / "out",
            compute={"pool": "inline", "batch_timeout_s": 0.5},
            quiet=True,
        )


def test_an_operator_of_another_library_is_refused(tmp_path: Path) -> None:
    path = graph(
        tmp_path / "m.onnx",
        [helper.make_node("Mine", ["images"], ["logits"], domain="mine")],
        {"images": ["n", 3, 8, 8]},
        {"logits": ["n", 5]},
    )
    with pytest.raises(UserError, match=r"ONNX Runtime can't load(.|\n)*standard operators only"):
        build_classifier(Choice("onnx", str(path), classes=tuple("abcde")))


def test_a_damaged_file_is_the_users_to_mend(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = export(Small(), tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    for content in (b"", b"not a model", whole[: len(whole) // 2], b"\x00" * 100):
        path.write_bytes(content)
        for read in (weights.load, onnx_files.read):
            with pytest.raises(UserError, match="expected an ONNX file, but"):
                read(path)
    assert capfd.readouterr() == ("", "")


def test_inputs_and_outputs_that_nothing_is_known_of_are_told(tmp_path: Path) -> None:
    def told(inputs: Mapping[str, Sequence[int | str]], types: Mapping[str, int] | None = None) -> str:
        first = next(iter(inputs))
        node = helper.make_node("Identity", [first], ["out"])
        path = graph(tmp_path / "m.onnx", [node], inputs, {"out": inputs[first]}, (), types)
        with pytest.raises(UserError) as caught:
            build_classifier(Choice("onnx", str(path), classes=ABC))
        return str(caught.value)

    assert "its inputs are: x float32 (?, 8, 8, 4)" in told({"x": ["n", 8, 8, 4]})
    assert "its inputs are: x float32 (?, 3, 8, 8); y" in told({"x": ["n", 3, 8, 8], "y": [1]})
    whole = {"x": TensorProto.INT32, "out": TensorProto.INT32}
    assert "x int32 (?, 3, 8, 8)" in told({"x": ["n", 3, 8, 8]}, whole)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_without_its_packages_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = export(Small(), tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs the package {name}(.|\n)*pip install 'cnnbatch\[onnx\]'"):
        build_classifier(Choice("onnx", str(path), classes=tuple("abcde")))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("{name: detect, model: onnx, weights: a.onnx}", "expected task.adapter torchvision, yolo or detr"),
        ("{name: detect, model: onnx, adapter: yollo}", "did you mean yolo?"),
        ("{name: detect, model: onnx, adapter: classify}", "expected torchvision, yolo or detr or null"),
        (
            "{name: classify, model: resnet50, adapter: classify}",
            "expected task.model=onnx beside it, got resnet50",
        ),
        ("{name: keypoints, model: onnx}", "keypoints reads no ONNX files"),
        ("{name: classify, model: onnx, embedding: true}", "gives its outputs only"),
    ],
)
def test_an_adapter_goes_with_the_model_onnx_and_with_its_task(task: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_job(f"task: {task}\ninput: photos\noutput: out\n", "job.yaml")
    assert expected in str(caught.value)


# --- Whole jobs ---

JOB = """
task: {{name: {task}, model: onnx, weights: "{weights}"{more}}}
input: "{photos}"
output: "{out}"
compute: {{pool: inline}}
"""


@pytest.mark.parametrize(
    ("task", "module", "more"),
    [("classify", Small(), ""), ("detect", Yolo(5), ", adapter: yolo, score_threshold: 0.3")],
)
def test_a_whole_job_runs_an_onnx_file(
    tmp_path: Path, photos: Callable[[int], Path], task: str, module: nn.Module, more: str
) -> None:
    path = describe(export(module, tmp_path / "m.onnx"), names=list("abcde"))
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(task=task, weights=path, more=more, photos=photos(3), out=tmp_path / "out"))
    cnnbatch.run(job, quiet=True)
    rows = cnnbatch.open(tmp_path / "out").arrow().to_pylist()
    assert [row["error"] for row in rows] == [None] * 3
    labels = [
        label
        for row in rows
        for label in ([row["label"]] if task == "classify" else [one["label"] for one in row["objects"]])
    ]
    assert len(labels) >= 3
    assert set(labels) <= set("abcde")
