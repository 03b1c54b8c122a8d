"""Face detectors in ONNX files: OpenCV's own FaceDetectorYN, and insightface's layouts, on made graphs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_detector import Faces
from cnnbatch.models.face_detectors import build_face_detector
from cnnbatch.models.network import seeded
from cnnbatch.models.onnx.faces import OnnxFaces, _fitted

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

YUNET = [f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)]


class Made(nn.Module):
    """A network that looks at each cell alone, with the outputs of a face detector.

    ``kinds`` are the numbers of an anchor's values in each kind of output: one is a probability.
    """

    def __init__(self, strides: Sequence[int], kinds: Sequence[int], anchors: int, batched: bool) -> None:
        super().__init__()
        self.batched, self.kinds, self.anchors = batched, kinds, anchors
        self.levels = nn.ModuleList(
            nn.Conv2d(3, count * anchors, stride, stride) for count in kinds for stride in strides
        )
        self.strides = len(strides)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = []
        for number, level in enumerate(self.levels):
            kind = number // self.strides
            count = self.kinds[kind]
            shape = (1, -1, count) if self.batched else (-1, count)
            value = level(images).permute(0, 2, 3, 1).reshape(shape)
            if count == 4 and not self.batched:  # distances to the sides of a box
                value = value.abs() + 0.5
            found.append(value.sigmoid() if count == 1 else value)
        return tuple(found)


def written(
    module: Made, path: Path, names: Sequence[str], size: tuple[int, int] | None = None, scale: float = 1
) -> Path:
    """Write the network as a file for pictures of ``size``, or of any."""
    with seeded(1), torch.no_grad():
        for level in module.levels:
            assert isinstance(level, nn.Conv2d)
            level.weight.normal_(std=scale * level.kernel_size[0] ** -1)
            level.bias.normal_()  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of its own exporter
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, 3, *(size or (128, 128))),),
            path,
            dynamo=False,
            input_names=["input"],
            output_names=list(names),
            dynamic_axes=None if size else {"input": {2: "height", 3: "width"}},
        )
    return path


def yunet(path: Path, size: tuple[int, int] | None = None) -> Path:
    return written(Made((8, 16, 32), (1, 1, 4, 10), 1, batched=True), path, YUNET, size, scale=0.004)


def insightface(path: Path, levels: int, size: tuple[int, int] | None = None) -> Path:
    strides = (8, 16, 32, 64, 128)[:levels]
    module = Made(strides, (1, 4, 10), 2 if levels == 3 else 1, batched=False)
    return written(module, path, [f"out{number}" for number in range(3 * levels)], size, scale=0.5)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def built(path: Path, adapter: str, size: tuple[int, int] | None = None) -> OnnxFaces:
    how = {"size": size} if size else {}
    module = build_face_detector(Choice("onnx", str(path), adapter=adapter, preprocessing=how)).module
    assert isinstance(module, OnnxFaces)
    return module


def found_in(module: nn.Module, *pictures: NDArray[np.uint8]) -> list[Faces]:
    sizes = torch.tensor([one.shape[:2] for one in pictures])
    canvases = torch.full((len(pictures), 3, *sizes.amax(0).tolist()), 77, dtype=torch.uint8)
    for canvas, one in zip(canvases, pictures, strict=True):
        canvas[:, : one.shape[0], : one.shape[1]] = torch.tensor(one).permute(2, 0, 1)
    with torch.inference_mode():
        found: list[Faces] = module(canvases, sizes)
    return found


# --- YuNet ---


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (33, 32)])
def test_yunet_gives_what_opencv_gives(tmp_path: Path, size: tuple[int, int]) -> None:
    padded = -(-size[0] // 32) * 32, -(-size[1] // 32) * 32
    theirs = cv2.FaceDetectorYN.create(str(yunet(tmp_path / "fixed.onnx", padded)), "", size[::-1], 0.6)
    module = built(yunet(tmp_path / "free.onnx"), "yunet")
    assert module.min_score == 0.9
    module.min_score = 0.6
    picture = noise(*size)
    _, rows = theirs.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    (found,) = found_in(module, picture)
    expected = torch.from_numpy(rows)
    assert len(expected) == len(found["scores"]) > 3
    boxes = torch.cat([expected[:, :2], expected[:, :2] + expected[:, 2:4]], 1)
    torch.testing.assert_close(found["scores"], expected[:, 14], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["boxes"], boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["keypoints"].flatten(1), expected[:, 4:14], rtol=1e-4, atol=1e-3)


def test_pictures_of_any_size_do_not_know_each_other(tmp_path: Path) -> None:
    module = built(yunet(tmp_path / "free.onnx"), "yunet")
    module.min_score = 0.6
    pictures = noise(40, 90), noise(64, 64, 1), noise(1, 1, 2)
    for together, picture in zip(found_in(module, *pictures), pictures, strict=True):
        torch.testing.assert_close(together, found_in(module, picture)[0])


def test_fields_choose_among_faces(tmp_path: Path) -> None:
    module = built(yunet(tmp_path / "free.onnx"), "yunet")
    module.min_score, picture = 0.6, noise(96, 96)
    (every,) = found_in(module, picture)
    shorter = (every["boxes"][:, 2:] - every["boxes"][:, :2]).amin(1)
    module.min_size = int(shorter.median()) + 1
    large = [score for score, side in zip(every["scores"], shorter, strict=True) if side >= module.min_size]
    assert found_in(module, picture)[0]["scores"].tolist() == large
    assert 0 < len(large) < len(shorter)
    module.max_faces = 1
    assert found_in(module, picture)[0]["scores"].tolist() == large[:1]
    module.min_score = 1.1
    assert [tuple(one.shape) for one in found_in(module, picture)[0].values()] == [(0, 4), (0,), (0, 5, 2)]


# --- RetinaFace and SCRFD ---


def by_hand(path: Path, blob: NDArray[Any], levels: int) -> tuple[NDArray[np.float32], ...]:
    """Return the boxes, scores and landmarks that stay of one input, cell by cell, best first."""
    import onnxruntime

    outputs = onnxruntime.InferenceSession(str(path)).run(None, {"input": blob})
    width = blob.shape[3]
    rows = []
    for level in range(levels):
        stride, anchors = 8 * 2**level, 2 if levels == 3 else 1
        scores, distances, points = (outputs[level + levels * kind] for kind in range(3))
        for place in range(len(scores)):
            y, x = divmod(place // anchors, width // stride)
            left, top, right, bottom = distances[place] * stride
            box = x * stride - left, y * stride - top, x * stride + right, y * stride + bottom
            marks = points[place].reshape(5, 2) * stride + (x * stride, y * stride)
            rows.append((float(scores[place, 0]), box, marks))
    kept: list[tuple[float, tuple[float, ...], NDArray[np.float32]]] = []
    for row in sorted((row for row in rows if row[0] >= 0.5), key=lambda row: -row[0]):
        if all(overlap(row[1], other[1]) <= 0.4 for other in kept):
            kept.append(row)
    return tuple(np.array([row[part] for row in kept], np.float32) for part in (1, 0, 2))


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the IoU of two boxes whose last pixels are their own."""

    def area(box: Sequence[float]) -> float:
        return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)

    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    shared = max(0.0, width) * max(0.0, height)
    return shared / (area(one) + area(other) - shared)


@pytest.mark.parametrize(("adapter", "levels"), [("scrfd", 3), ("retinaface", 3), ("retinaface", 5)])
def test_insightfaces_layout_is_read_cell_by_cell(tmp_path: Path, adapter: str, levels: int) -> None:
    path = insightface(tmp_path / "faces.onnx", levels)
    module = built(path, adapter, size=(128, 128))
    assert module.min_score == 0.5
    picture = noise(128, 128)
    blob = cv2.dnn.blobFromImage(picture, 1 / 128, (128, 128), (127.5, 127.5, 127.5))
    boxes, scores, points = by_hand(path, blob, levels)
    (found,) = found_in(module, picture)
    assert len(scores) > 3
    torch.testing.assert_close(found["scores"], torch.from_numpy(scores), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["boxes"], torch.from_numpy(boxes), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["keypoints"], torch.from_numpy(points), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(30, 90), (300, 200), (64, 128)])
def test_a_picture_is_fitted_into_the_files_size_and_its_faces_lie_in_it(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = insightface(tmp_path / "faces.onnx", 3, (64, 128))
    module, picture = built(path, "scrfd"), noise(*size)
    scale = min(64 / size[0], 128 / size[1])
    height, width = int(size[0] * scale), int(size[1] * scale)
    fitted, by = _fitted(torch.tensor(picture).permute(2, 0, 1), (64, 128))
    canvas = fitted[0].permute(1, 2, 0).numpy()
    assert by == height / size[0]
    assert not canvas[height:].any()
    assert not canvas[:, width:].any()
    resized = cv2.resize(picture, (width, height)).astype(int)
    assert np.abs(canvas[:height, :width] - resized).max() <= 1
    (expected,), (found,) = found_in(module, canvas), found_in(module, picture)
    assert len(found["scores"]) > 3
    torch.testing.assert_close(found["scores"], expected["scores"])
    for name in ("boxes", "keypoints"):
        torch.testing.assert_close(found[name] * by, expected[name], rtol=1e-5, atol=1e-3)


def test_the_size_of_a_free_file_is_insightfaces(tmp_path: Path) -> None:
    module = built(insightface(tmp_path / "faces.onnx", 3), "scrfd")
    assert module._size == (640, 640)


# --- What is refused ---


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.adapter: scrfd expects yunet.onnx to give 9 or 15 tables"):
        built(yunet(tmp_path / "yunet.onnx"), "scrfd")
    with pytest.raises(UserError, match=r"task.adapter: yunet expects scrfd.onnx to give cls_8, cls_16"):
        built(insightface(tmp_path / "scrfd.onnx", 3), "yunet")


def test_a_file_without_landmarks_is_refused(tmp_path: Path) -> None:
    module = Made((8, 16, 32), (1, 4), 2, batched=False)
    path = written(module, tmp_path / "boxes.onnx", [f"out{number}" for number in range(6)])
    with pytest.raises(UserError, match="five landmarks"):
        built(path, "scrfd")


def test_an_adapter_has_to_be_named(tmp_path: Path) -> None:
    path = yunet(tmp_path / "yunet.onnx")
    with pytest.raises(UserError, match="expected yunet, retinaface, scrfd, got nothing"):
        build_face_detector(Choice("onnx", str(path)))
    with pytest.raises(UserError, match="got yolo"):
        build_face_detector(Choice("onnx", str(path), adapter="yolo"))


def test_another_size_than_the_files_is_refused(tmp_path: Path) -> None:
    path = insightface(tmp_path / "faces.onnx", 3, (64, 64))
    with pytest.raises(UserError, match=r"takes pictures of 64 x 64 only, got 96 x 96"):
        built(path, "scrfd", size=(96, 96))
