"""Segmentation: maps that are right, their encodings, several views, and whole jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import interpolate

import cnnbatch
from cnnbatch.images.class_map import from_png
from cnnbatch.models import Choice
from cnnbatch.models.resizing import prepare
from cnnbatch.models.segmenters import build_segmenter
from cnnbatch.output.maps import map_of
from cnnbatch.storage import Storage
from cnnbatch.tasks.segment import Segment
from cnnbatch.types import Image, ImageRef, Runtime
from tests import tiny_segmenter
from tests.tasks.test_task_contract import predict

COLOURS, CONVOLUTIONS = "tests.tiny_segmenter:colours", "tests.tiny_segmenter:convolutions"


def picture(number: int, size: tuple[int, int] = (48, 64)) -> Image:
    pixels, _ = tiny_segmenter.scene(number, size)
    return Image(ImageRef(f"{number}.png", f"{number}.png"), torch.from_numpy(pixels).permute(2, 0, 1), size)


def rows(pictures: list[Image], **fields: Any) -> list[dict[str, Any]]:
    task = Segment.model_validate({"model": COLOURS, **fields})
    found = predict(task.load(Runtime("cpu")), pictures)
    assert found.schema.equals(task.columns(), check_metadata=True)
    found.validate(full=True)
    return found.to_pylist()


def test_every_pixel_has_its_class() -> None:
    for number in range(3):
        (row,) = rows([picture(number)])
        _, classes = tiny_segmenter.scene(number)
        assert np.array_equal(from_png(row["map"]), classes)
        counts = {name: int((classes == place).sum()) for place, name in enumerate(tiny_segmenter.NAMES)}
        assert {one["label"]: one["pixels"] for one in row["map_classes"]} == counts
        assert [one["pixels"] for one in row["map_classes"]] == sorted(counts.values(), reverse=True)
        assert sum(one["share"] for one in row["map_classes"]) == pytest.approx(1)
        assert 0.9 < row["confidence"] <= 1


def test_a_class_that_no_pixel_has_is_not_listed() -> None:
    whole = picture(0)
    sky = Image(
        whole.ref, torch.tensor([110, 170, 240], dtype=torch.uint8)[:, None, None].expand(3, 9, 7), (9, 7)
    )
    (row,) = rows([sky])
    assert row["map_classes"] == [{"label": "sky", "pixels": 63, "share": 1.0}]


@pytest.mark.parametrize("encoding", ["rle", "asset"])
def test_every_encoding_is_the_same_map(encoding: str, tmp_path: Path) -> None:
    tiny_segmenter.scenes(tmp_path / "photos", 3)
    plain, other = tmp_path / "png", tmp_path / encoding
    for out in (plain, other):
        cnnbatch.run("segment", quiet=True, **job(tmp_path / "photos", out, map=out.name))
    expected, found = (
        list[Any](cnnbatch.open(str(out)).arrow(["map"])["map"].to_pylist()) for out in (plain, other)
    )
    assert found != expected
    for one, value in zip(expected, found, strict=True):
        assert np.array_equal(map_of(value, Storage(), str(other)), map_of(one, Storage(), str(plain)))


def job(photos: Path, out: Path, **task: Any) -> dict[str, Any]:
    return {
        "task": {"model": COLOURS, **task},
        "input": {"url": str(photos)},
        "output": str(out),
        "compute": {"pool": "inline"},
    }


def reference(image: Image, scales: tuple[float, ...], flips: bool) -> torch.Tensor:
    """Return the mean probabilities (C, H, W) of all views, one after the other."""
    segmenter = build_segmenter(Choice(CONVOLUTIONS))
    inputs, found = prepare(image.pixels, segmenter.resizing).pixels[None], []
    for scale in scales:
        size = [round(side * scale) for side in image.size]
        same = size == list(image.size)
        scaled = inputs if same else interpolate(inputs, size, mode="bilinear", antialias=scale < 1)
        for flipped in (False, True) if flips else (False,):
            view = segmenter.module(scaled.flip(3) if flipped else scaled)
            whole = interpolate(view.flip(3) if flipped else view, image.size, mode="bilinear")
            found.append(whole[0].softmax(0))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    ("scales", "flips"), [((1.0,), False), ((1.0,), True), ((0.5, 1.0, 1.5), False), ((0.75, 1.25), True)]
)
def test_probabilities_of_several_views_are_averaged(scales: tuple[float, ...], flips: bool) -> None:
    image = picture(4, (52, 70))
    (row,) = rows([image], model=CONVOLUTIONS, scales=scales, flips=flips)
    expected = reference(image, scales, flips)
    assert (from_png(row["map"]) == expected.argmax(0).numpy()).mean() >= 0.999
    assert row["confidence"] == pytest.approx(float(expected.amax(0).mean()), abs=1e-3)
    assert len(np.unique(from_png(row["map"]))) > 1


def test_a_mirrored_picture_has_the_mirrored_map_where_views_are_flipped() -> None:
    image = picture(5, (40, 56))
    mirrored = Image(image.ref, image.pixels.flip(2), image.size)
    maps = [from_png(row["map"]) for row in rows([image, mirrored], model=CONVOLUTIONS, flips=True)]
    assert (maps[0][:, ::-1] == maps[1]).mean() >= 0.999


@pytest.mark.parametrize("size", ["own", 24, 100, [40, 40]])
def test_a_map_has_the_originals_size_whatever_the_inputs(size: Any) -> None:
    sizes = [(48, 64), (31, 77), (1, 1), (90, 9)]
    pictures = [picture(number, one) for number, one in enumerate(sizes)]
    assert [from_png(row["map"]).shape for row in rows(pictures, size=size)] == sizes


def test_the_least_certain_regions_are_where_colours_are_mixed() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:] = tiny_segmenter.COLOURS["sky"]
    pixels[40:48, 60:72] = np.mean([tiny_segmenter.COLOURS["sky"], tiny_segmenter.COLOURS["road"]], 0)
    image = Image(ImageRef("a", "a"), torch.from_numpy(pixels).permute(2, 0, 1), (64, 96))
    (row,) = rows([image], uncertain=2)
    first, second = row["uncertain"]
    assert first["box"] == {"x1": 60, "y1": 40, "x2": 72, "y2": 48}
    assert first["score"] < 0.9 < second["score"]
    assert "uncertain" not in rows([image])[0]


def test_more_than_a_bytes_classes_are_written_in_two(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(300)]
    (row,) = rows([picture(0)], model=CONVOLUTIONS, classes=names, weights="random")
    found = from_png(row["map"])
    assert found.dtype == np.uint16
    assert {one["label"] for one in row["map_classes"]} == {names[number] for number in np.unique(found)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"map": "jpeg"}, "png"),
        ({"scales": []}, "at least 1"),
        ({"scales": [0.0]}, "greater than or equal to 0.1"),
        ({"uncertain": -1}, "greater than or equal to 0"),
        ({"size": "smaller"}, "own"),
        ({"model": "onnx", "weights": "a.onnx", "adapter": "yolo"}, "segment"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Segment.model_validate({"model": COLOURS, **fields})


def test_a_whole_job_has_a_row_an_image_also_where_one_is_broken(tmp_path: Path) -> None:
    classes = tiny_segmenter.scenes(tmp_path / "photos", 4)
    (tmp_path / "photos" / "001.png").write_bytes(b"no picture")
    cnnbatch.run(
        "segment", quiet=True, max_failed=1.0, **job(tmp_path / "photos", tmp_path / "out", uncertain=1)
    )
    found = cnnbatch.open(tmp_path / "out").arrow().to_pylist()
    assert [row["key"] for row in found] == ["000.png", "001.png", "002.png", "003.png"]
    assert found[1]["error"]["code"] == "undecodable"
    assert {found[1][name] for name in ("map", "map_classes", "confidence")} == {None}
    for place in (0, 2, 3):
        assert np.array_equal(from_png(found[place]["map"]), classes[place])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["compile", "openvino"])
def test_backends_agree_with_eager(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    task = Segment(model=CONVOLUTIONS, flips=True)
    pictures = [picture(number, size) for number, size in enumerate([(48, 64), (64, 48), (48, 64)])]
    maps = []
    for name in ("eager", backend):
        model = task.load(Runtime("cpu", backend=name, batch=2))  # type: ignore[arg-type]
        maps.append([from_png(row["map"]) for row in predict(model, pictures).to_pylist()])
    for one, other in zip(*maps, strict=True):
        assert (one == other).mean() >= 0.995


def test_tiles_give_the_classes_of_the_whole_picture() -> None:
    pictures = [picture(number, size) for number, size in enumerate([(150, 260), (64, 64), (300, 90)])]
    whole = rows(pictures, model=CONVOLUTIONS, uncertain=2)
    tiled = rows(pictures, model=CONVOLUTIONS, uncertain=2, tile=96, overlap=16)
    for one, other in zip(whole, tiled, strict=True):
        assert (from_png(one["map"]) == from_png(other["map"])).mean() >= 0.9999
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-5)
        assert [region["box"] for region in one["uncertain"]] == [
            region["box"] for region in other["uncertain"]
        ]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "flips"), [([128, 160], True), (100, False)])
def test_tiles_are_of_the_input_whatever_its_size(size: Any, flips: bool) -> None:
    pictures = [picture(number, (150, 260)) for number in range(2)]
    whole, tiled = (
        rows(pictures, model=CONVOLUTIONS, size=size, flips=flips, **tiles)
        for tiles in ({}, {"tile": 64, "overlap": 16})
    )
    for one, other in zip(whole, tiled, strict=True):
        assert (from_png(one["map"]) == from_png(other["map"])).mean() >= 0.999


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tile": 100, "overlap": 64}, "at least twice task.overlap and 32 more, 160; got 100"),
        ({"tile": 256, "scales": [0.5, 1.0]}, "expected task.scales to be left out"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Segment.model_validate({"model": COLOURS, **fields})
