"""Segmenters in ONNX files: logits, probabilities and numbers of classes, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.images.class_map import from_png
from cnnbatch.models import Choice
from cnnbatch.models.segmenters import build_segmenter
from cnnbatch.tasks.segment import Segment
from cnnbatch.types import Image, ImageRef, Runtime
from tests import tiny_segmenter
from tests.models.onnx.test_onnx import describe, export
from tests.tasks.test_task_contract import predict

NAMES = tiny_segmenter.NAMES
FREE = {"dynamic_axes": {"images": {0: "n", 2: "h", 3: "w"}}}
needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="OpenVINO is not installed")


class Numbers(nn.Module):
    """The number of each pixel's class."""

    def __init__(self, channels: bool = False) -> None:
        super().__init__()
        self.inner, self.channels = tiny_segmenter.NearestColour(), channels

    def forward(self, images: Tensor) -> Tensor:
        numbers: Tensor = self.inner(images).argmax(1, keepdim=self.channels)
        return numbers


class Two(nn.Module):
    """Logits, and logits of a second head, as torchvision's segmenters have them in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_segmenter.NearestColour()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.inner(images)
        return found, -found


def picture(number: int, size: tuple[int, int] = (64, 64)) -> Image:
    pixels, _ = tiny_segmenter.scene(number, size)
    return Image(ImageRef("a", "a"), torch.from_numpy(pixels).permute(2, 0, 1), size)


def rows(
    path: Path, pictures: Sequence[Image], runtime: Runtime | None = None, **fields: Any
) -> list[dict[str, Any]]:
    task = Segment.model_validate({"model": "onnx", "weights": str(path), "classes": NAMES, **fields})
    return predict(task.load(runtime or Runtime("cpu")), list(pictures)).to_pylist()


@pytest.mark.parametrize("ending", ["logits", "probabilities", "numbers", "numbers with a channel"])
def test_every_form_of_output_gives_the_same_map(ending: str, tmp_path: Path) -> None:
    network: dict[str, nn.Module] = {
        "logits": tiny_segmenter.NearestColour(),
        "probabilities": nn.Sequential(tiny_segmenter.NearestColour(), nn.Softmax(1)),
        "numbers": Numbers(),
        "numbers with a channel": Numbers(channels=True),
    }
    path = export(network[ending], tmp_path / "a.onnx")
    for number in range(2):
        (row,) = rows(path, [picture(number)])
        assert np.array_equal(from_png(row["map"]), tiny_segmenter.scene(number, (64, 64))[1])
        assert (row["confidence"] is None) is ending.startswith("numbers")


def test_probabilities_are_as_sure_as_logits(tmp_path: Path) -> None:
    plain = export(tiny_segmenter.NearestColour(), tmp_path / "a.onnx")
    soft = export(nn.Sequential(tiny_segmenter.NearestColour(), nn.Softmax(1)), tmp_path / "b.onnx")
    sure = [rows(path, [picture(0)], uncertain=1)[0] for path in (plain, soft)]
    assert sure[0]["confidence"] == pytest.approx(sure[1]["confidence"], abs=1e-4)
    assert sure[0]["uncertain"][0]["box"] == sure[1]["uncertain"][0]["box"]


def test_a_free_file_gets_pictures_of_their_own_size(tmp_path: Path) -> None:
    path = export(tiny_segmenter.NearestColour(), tmp_path / "a.onnx", **FREE)
    sizes = [(64, 96), (50, 70)]
    for size, row in zip(sizes, rows(path, [picture(1, size) for size in sizes]), strict=True):
        _, expected = tiny_segmenter.scene(1, size)
        assert from_png(row["map"]).shape == size
        assert (from_png(row["map"]) == expected).mean() > 0.95


def test_a_fixed_file_gets_pictures_stretched(tmp_path: Path) -> None:
    path = export(tiny_segmenter.NearestColour(), tmp_path / "a.onnx")
    (row,) = rows(path, [picture(1, (80, 120))])
    assert (from_png(row["map"]) == tiny_segmenter.scene(1, (80, 120))[1]).mean() > 0.95
    for size in ("own", 32, [32, 32]):
        with pytest.raises(UserError, match=r"task.size: a.onnx takes pictures of 64 x 64 only"):
            rows(path, [picture(1)], size=size)


def test_of_two_outputs_the_one_called_out_counts(tmp_path: Path) -> None:
    path = export(Two(), tmp_path / "a.onnx", output_names=["out", "aux"])
    (row,) = rows(path, [picture(0)])
    assert np.array_equal(from_png(row["map"]), tiny_segmenter.scene(0, (64, 64))[1])
    other = export(Two(), tmp_path / "b.onnx", output_names=["first", "second"])
    with pytest.raises(UserError, match="segment expects b.onnx to give logits"):
        rows(other, [picture(0)])


def test_names_come_from_the_job_or_the_file(tmp_path: Path) -> None:
    path = export(tiny_segmenter.NearestColour(), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="task.classes: a.onnx does not say what its 3 classes are called"):
        rows(path, [], classes=None)
    with pytest.raises(UserError, match="has 3 classes, but task.classes has 2"):
        rows(path, [], classes=["a", "b"])
    named = describe(path, names={number: name for number, name in enumerate("xyz")})
    assert build_segmenter(Choice("onnx", str(named))).classes == ("x", "y", "z")


def test_numbers_past_the_names_are_an_error(tmp_path: Path) -> None:
    path = export(Numbers(), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"gives numbers from \d to \d, but only 1 have names"):
        rows(path, [], classes=["a"])


def test_numbers_do_not_tell_where_it_is_uncertain(tmp_path: Path) -> None:
    path = export(Numbers(), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="do not tell how sure it is"):
        rows(path, [], uncertain=3)


def test_how_it_is_normalised_is_said_and_can_be_changed(tmp_path: Path) -> None:
    path = export(tiny_segmenter.NearestColour(), tmp_path / "a.onnx")
    found = build_segmenter(Choice("onnx", str(path), classes=NAMES))
    assert "task.mean and task.std change it" in found.notes[0]
    task = Segment.model_validate(
        {"model": "onnx", "weights": str(path), "classes": NAMES, "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    model = task.load(Runtime("cpu"))
    assert model.notes == ()
    assert "mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)" in model.identity["preprocessing"]


def test_another_tasks_adapter_is_refused() -> None:
    with pytest.raises(ValidationError):
        Segment.model_validate({"model": "onnx", "weights": "a.onnx", "adapter": "yolo"})


@pytest.mark.slow
@needs_openvino
def test_openvino_reads_the_same_file(tmp_path: Path) -> None:
    path = export(tiny_segmenter.NearestColour(), tmp_path / "a.onnx")
    (row,) = rows(path, [picture(0)], Runtime("cpu", backend="openvino"))
    assert (from_png(row["map"]) == tiny_segmenter.scene(0, (64, 64))[1]).mean() > 0.999


def test_a_whole_job(tmp_path: Path) -> None:
    path = export(Numbers(), tmp_path / "a.onnx", **FREE)
    expected = tiny_segmenter.scenes(tmp_path / "photos", 2, (64, 64))
    cnnbatch.run(
        "segment",
        quiet=True,
        task={"model": "onnx", "weights": str(path), "classes": list(NAMES)},
        input=str(tmp_path / "photos"),
        output=str(tmp_path / "out"),
        compute={"pool": "inline"},
    )
    found: list[Any] = cnnbatch.open(str(tmp_path / "out")).arrow().to_pylist()
    assert [row["confidence"] for row in found] == [None, None]
    for row, classes in zip(found, expected, strict=True):
        assert np.array_equal(from_png(row["map"]), classes)
