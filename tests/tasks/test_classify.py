"""The classifier says what a plain loop over the same network would say, and its rows say it whole."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torchvision
from PIL import Image as Pillow
from pydantic import ValidationError
from safetensors.torch import load_file
from torchvision.models import MobileNet_V2_Weights

from cnnbatch.errors import UserError
from cnnbatch.images.decode import decode
from cnnbatch.models import Network, build_classifier
from cnnbatch.models.libraries.torchvision_models import imagenet_classes
from cnnbatch.storage import Storage
from cnnbatch.tasks.classify import Classifier, Classify
from cnnbatch.types import Image, ImageRef, Precision, Runtime

TINY = {"resize": 36, "crop": 32}
CPU = Runtime("cpu")


def tiny(**fields: Any) -> Classify:
    """Return a small network with random weights on small pictures."""
    given = {"model": "mobilenet_v3_small", "weights": "random", "preprocessing": TINY, **fields}
    return Classify.model_validate(given)


def image(number: int, truth: str | None = None, height: int = 40, width: int = 50) -> Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(number))
    ref = ImageRef(f"{number}.jpg", f"/photos/{number}.jpg")
    upright = pixels.to(torch.uint8).permute(2, 0, 1)
    return Image(ref, upright, (height, width), None if truth is None else {"label": truth})


def predict(model: Classifier, images: Sequence[Image]) -> tuple[pa.RecordBatch, dict[str, torch.Tensor]]:
    """Take images through the model's steps in one batch, as the worker does."""
    prepared = [model.prepare(one) for one in images]
    batch = torch.stack([inner[0].pixels for inner in prepared])
    outputs = model.forward(batch, torch.tensor([inner[0].size for inner in prepared]))
    items = [[{name: value[row] for name, value in outputs.items()}] for row in range(len(images))]
    return model.rows(images, prepared, items), outputs


@pytest.fixture(scope="module")
def mobilenet(shared: Path) -> torch.nn.Module:
    module: torch.nn.Module = torchvision.models.mobilenet_v2()
    module.load_state_dict(load_file(shared / "weights" / "mobilenet_v2.safetensors"))
    module.eval()
    return module


def reference(module: torch.nn.Module, paths: Sequence[Path]) -> torch.Tensor:
    """Return the probabilities (N, 1000) of the loop that torchvision's documentation shows."""
    preprocess = MobileNet_V2_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        return torch.cat(
            [module(preprocess(Pillow.open(path).convert("RGB"))[None]).softmax(1) for path in paths]
        )


def read(path: Path, model: Classifier) -> Image:
    pixels, size = decode(path.read_bytes(), model.decode_size)
    return Image(ImageRef(path.name, str(path)), pixels, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "every", [10, pytest.param(1, marks=pytest.mark.long)], ids=["one of ten", "the whole sample"]
)
def test_labels_equal_those_of_a_plain_torchvision_loop(
    shared: Path, mobilenet: torch.nn.Module, every: int
) -> None:
    with (shared / "data" / "imagenet-sample" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::every]
    paths = [shared / "data" / "imagenet-sample" / row["file"] for row in rows]
    weights = str(shared / "weights" / "mobilenet_v2.safetensors")
    model = Classify(model="mobilenet_v2", weights=weights).load(CPU)
    tables = [
        predict(model, [read(path, model) for path in paths[start : start + 16]])[0]
        for start in range(0, len(paths), 16)
    ]
    found = pa.Table.from_batches(tables)
    expected = reference(mobilenet, paths)
    names = imagenet_classes()
    assert found["label"].to_pylist() == [names[number] for number in expected.argmax(1).tolist()]
    assert np.abs(found["score"].to_numpy() - expected.amax(1).numpy()).max() < 0.01
    right = [row["category"] == label for row, label in zip(rows, found["label"].to_pylist(), strict=True)]
    assert sum(right) / len(right) > 0.65


DEMO = {
    "skimage/data/coffee.png": ("espresso", 0.95),
    "skimage/data/chelsea.png": ("tiger cat", 0.39),
    "skimage/data/motorcycle_left.png": ("moped", 0.54),
    "skimage/data/rocket.jpg": ("missile", 0.27),
    "sklearn/datasets/images/china.jpg": ("palace", 0.30),
    "sklearn/datasets/images/flower.jpg": ("daisy", 0.32),
}


def test_the_demo_sees_what_it_should() -> None:
    model = Classify(model="efficientnet_lite0").load(CPU)
    images = []
    for key in DEMO:
        pixels, size = decode(Storage().read(f"package:{key}"), model.decode_size)
        images.append(Image(ImageRef(key, key), pixels, size))
    rows, _ = predict(model, images)
    for found, (label, score) in zip(rows.to_pylist(), DEMO.values(), strict=True):
        assert found["label"] == label
        assert found["score"] == pytest.approx(score, abs=0.02)


def test_rows_hold_the_best_classes_in_order() -> None:
    model = tiny(top_k=3, probabilities=True, embedding=True).load(CPU)
    rows, outputs = predict(model, [image(number) for number in range(4)])
    names = imagenet_classes()
    for found, probabilities in zip(rows.to_pylist(), outputs["probabilities"], strict=True):
        scores, numbers = probabilities.topk(3)
        assert [best["label"] for best in found["top"]] == [names[number] for number in numbers.tolist()]
        assert [best["score"] for best in found["top"]] == scores.tolist()
        assert (found["label"], found["score"]) == (found["top"][0]["label"], found["top"][0]["score"])
        assert found["probabilities"] == probabilities.tolist()
        assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert len(found["embedding"]) == 1024


def test_the_score_of_the_truth_is_null_where_there_is_none() -> None:
    model = tiny().load(CPU)
    images = [image(0, "tench"), image(1), image(2, "no such class"), image(3, "toilet tissue")]
    rows, outputs = predict(model, images)
    probabilities = outputs["probabilities"]
    expected = [float(probabilities[0, 0]), None, None, float(probabilities[3, 999])]
    assert rows["true_score"].to_pylist() == expected


def test_the_embedding_is_what_the_last_layer_sees() -> None:
    task = tiny(model="resnet18", embedding=True)
    plain = build_classifier(task.choice(task.preprocessing.fields())).module
    last = plain.get_submodule("fc")
    assert isinstance(last, torch.nn.Linear)
    rows, outputs = predict(task.load(CPU), [image(1)])
    logits = last(torch.tensor(rows["embedding"].to_pylist()))
    assert logits.std() > 0.1  # Else the features would say nothing.
    torch.testing.assert_close(logits.softmax(1), outputs["probabilities"], atol=1e-6, rtol=1e-5)


def test_a_picture_does_not_change_with_its_neighbours_or_its_batch() -> None:
    model = tiny(probabilities=True).load(CPU)
    alone, _ = predict(model, [image(1)])
    first, _ = predict(model, [image(1), image(2), image(3)])
    second, _ = predict(model, [image(4), image(5), image(1)])
    assert first.slice(0, 1).to_pylist() == second.slice(2, 1).to_pylist()
    ours, whole = (np.array(rows["probabilities"][0].as_py()) for rows in (alone, first))
    np.testing.assert_allclose(ours, whole, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(shared: Path, precision: Precision) -> None:
    weights = str(shared / "weights" / "squeezenet1_1.safetensors")
    task = Classify(model="squeezenet1_1", weights=weights, embedding=True)
    paths = sorted((shared / "data" / "imagenet-sample" / "images").iterdir())[:6]
    whole, half = (task.load(Runtime("cpu", kind)) for kind in ("fp32", precision))
    exact, _ = predict(whole, [read(path, whole) for path in paths])
    rough, outputs = predict(half, [read(path, half) for path in paths])
    assert rough.schema == exact.schema == task.columns()
    assert all(value.dtype in (torch.float32, torch.int64) for value in outputs.values())
    np.testing.assert_allclose(rough["score"].to_numpy(), exact["score"].to_numpy(), atol=0.03)


def test_an_overflow_in_float16_is_an_error_and_not_a_row() -> None:
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    weight = module.state_dict()["2.weight"]
    weight.fill_(1e4)  # black sums up to -59,600, white to 73,200
    how = tiny().load(CPU)._how
    model = Classifier(tiny(), Network(module, how, ("a", "b"), weights="w"), Runtime("cpu", "fp16"))
    with pytest.raises(FloatingPointError, match="bf16 or fp32"):
        model.forward(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), torch.tensor([[32, 32]]))


def test_more_best_classes_than_classes_are_all_of_them() -> None:
    rows, _ = predict(tiny(classes=["a", "b"], top_k=9).load(CPU), [image(0), image(1)])
    assert all({best["label"] for best in found["top"]} == {"a", "b"} for found in rows.to_pylist())


def test_the_identity_tells_whatever_changes_a_row(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    models = [
        tiny(classes=["a", "b"]),
        tiny(classes=["a", "c"]),
        tiny(classes=["a", "b"], weights="random:1"),
        tiny(classes=["a", "b"], preprocessing={**TINY, "resize": 40}),
    ]
    identities = [tuple(task.load(CPU).identity.items()) for task in models]
    assert len(set(identities)) == 4
    assert tuple(tiny(classes=str(tmp_path / "names.txt")).load(CPU).identity.items()) == identities[0]
    assert dict(identities[0])["weights"] == "random:0"
    assert dict(identities[0])["library"].startswith("torchvision ")


def test_a_file_of_classes_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.classes: .*one a line"):
        tiny(classes=str(tmp_path / "absent.txt")).load(CPU)


def test_a_size_the_network_refuses_is_told_before_the_first_image() -> None:
    with pytest.raises(UserError, match="refuses an input of 2 x 2 pixels"):
        tiny(model="alexnet", preprocessing={"resize": 2, "crop": 2}).load(CPU)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 0},
        {"sha256": "abc"},
        {"preprocessing": {"crop": 0}},
        {"preprocessing": {"std": [1, 0, 1]}},
        {"preprocessing": {"colour": "red"}},
        {"modle": "x"},
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny(**fields)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_says_the_same(shared: Path, precision: Precision) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    task = Classify(model="squeezenet1_1", weights=str(shared / "weights" / "squeezenet1_1.safetensors"))
    paths = sorted((shared / "data" / "imagenet-sample" / "images").iterdir())[:16]
    host, device = task.load(CPU), task.load(Runtime("cuda", precision))
    exact, _ = predict(host, [read(path, host) for path in paths])
    rough, _ = predict(device, [read(path, device) for path in paths])
    np.testing.assert_allclose(rough["score"].to_numpy(), exact["score"].to_numpy(), atol=0.03)
