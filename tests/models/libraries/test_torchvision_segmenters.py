"""torchvision's segmenters: its own network and preset, interpolation to the original, the largest logit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch.nn.functional import interpolate
from torchvision.transforms import v2 as transforms
from torchvision.transforms._presets import SemanticSegmentation

from cnnbatch.images.class_map import from_png
from cnnbatch.models import Segmenter
from cnnbatch.models.libraries.torchvision_segmenters import TorchvisionSegmenter, architecture, names
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.segmenter import own_size
from cnnbatch.tasks.segment import PixelClassifier, Segment
from cnnbatch.types import Image, ImageRef, Runtime
from tests.tasks.test_task_contract import predict

CLASSES = tuple(f"class {number}" for number in range(7))
SIZES = ((60, 80), (75, 50), (64, 64))
TORCHVISION = torchvision.models.list_models(module=torchvision.models.segmentation)
SHORTER = 48


def reference(name: str) -> Any:
    """Return a segmenter of torchvision with random weights, whose normalisations have seen noise."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=len(CLASSES))
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = None
    with torch.no_grad():
        model.train()(torch.randn((4, 3, 64, 96)))
    return model.eval()


def pictures() -> list[Image]:
    found = []
    for number, size in enumerate(SIZES):
        coarse = torch.rand((1, 3, 6, 7), generator=torch.Generator().manual_seed(number))
        pixels = (interpolate(coarse, size=size, mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)
        found.append(Image(ImageRef(f"{number}.png", f"{number}.png"), pixels, size))
    return found


def torchvisions(model: Any, picture: Image, shorter: int | None) -> torch.Tensor:
    """Return probabilities (C, H, W) at the original's size, made as torchvision's documentation says.

    Its preset would resize bytes by floats; its newer transforms, which are nearer to Pillow's, by bytes.
    """
    pixels = picture.pixels if shorter is None else transforms.Resize(shorter)(picture.pixels)
    batch = SemanticSegmentation(resize_size=None)(pixels)[None]
    with torch.inference_mode():
        logits = model(batch)["out"]
        whole = interpolate(logits, size=picture.size, mode="bilinear", align_corners=False)
    return whole[0].softmax(0)


@pytest.mark.slow
@pytest.mark.parametrize("shorter", [None, SHORTER])
@pytest.mark.parametrize("name", TORCHVISION)
def test_maps_are_torchvisions(name: str, shorter: int | None) -> None:
    model = reference(name)
    resizing = own_size()
    if shorter is not None:
        resizing = Resizing(
            "sides", (shorter, 8 * shorter), resizing.mean, resizing.std, rounding="exact", antialias=True
        )
    segmenter = Segmenter(TorchvisionSegmenter(copy.deepcopy(model)), resizing, CLASSES)
    ours = PixelClassifier(Segment(model=name), segmenter, Runtime("cpu"))
    for picture, row in zip(pictures(), predict(ours, pictures()).to_pylist(), strict=True):
        probabilities = torchvisions(model, picture, shorter)
        best, expected = probabilities.max(0)
        found = from_png(row["map"])
        assert found.shape == picture.size
        assert (found == expected.numpy()).mean() >= 0.9995
        assert row["confidence"] == pytest.approx(float(best.mean()), abs=1e-4)
        assert len(np.unique(found)) > 1, "a map of one class would show nothing"


def test_what_is_published_is_known_by_its_name() -> None:
    assert names() == TORCHVISION
    for name in names():
        found = architecture(name)
        assert set(found.names) == {"COCO_WITH_VOC_LABELS_V1", "DEFAULT"}
        assert found.classes[:2] == ("__background__", "aeroplane")
        assert found.aliases == {"__background__": "background"}
        assert found.classifier in torchvision.models.list_models(module=torchvision.models)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_tensors_have_torchvisions_names(name: str) -> None:
    ours = architecture(name).make(3).state_dict()
    theirs = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=3
    ).state_dict()
    assert ours.keys() == theirs.keys()
