"""What a lesson shows of networks, against their own forward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnbatch.config.train import Train
from cnnbatch.images import class_map
from cnnbatch.models import Choice
from cnnbatch.tasks.recipes import masks_inside
from cnnbatch.tasks.recipes.inside import principal, unnormalized
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.tasks.recipes.segmentation import SegmenterRecipe
from cnnbatch.tasks.recipes.segmentation_inside import Seen, strips
from cnnbatch.types import Image, ImageRef
from tests import tiny_instances, tiny_maps

NUMBERS = {name: place for place, name in enumerate(tiny_maps.CLASSES)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def example(made: SegmenterRecipe, number: int, size: tuple[int, int]) -> Any:
    picture, numbers = tiny_maps.drawn(number, size)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    truth = {"map": class_map.png(numbers)}
    return made.example(Image(ImageRef(str(number), ""), pixels, pixels.shape[1:], truth), None)  # type: ignore[arg-type]


def fcn() -> SegmenterRecipe:
    """Return an FCN-8s whose skips say something."""
    choice = Choice("fcn8s_mobilenet_v2", "random:0", preprocessing={"fit": "stretch", "size": (64, 96)})
    made = SegmenterRecipe(choice, Train(strategy="scratch"), TrainingData(tiny_maps.CLASSES, {}, 1, NUMBERS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in made.module.get_submodule("network.module.skips").modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.5)
    made.module.eval()
    return made


@pytest.mark.slow
def test_each_map_of_the_backbone_adds_its_part() -> None:
    made = fcn()
    depths, parts = made.inside([example(made, number, (70, 90)) for number in range(2)])
    assert [one.name for one in depths.rows[0][1:]] == [
        f"stride {stride}, {channels} channels"
        for stride, channels in ((2, 16), (4, 24), (8, 32), (16, 96), (32, 320))
    ]
    assert all(tuple(one.pixels.shape[1:]) == (64, 96) for row in depths.rows for one in row)
    for row in depths.rows:
        for stride, one in zip((2, 4, 8, 16, 32), row[1:], strict=True):
            cells = one.pixels[:, ::stride, ::stride]
            assert torch.equal(one.pixels, cells.repeat_interleave(stride, 1).repeat_interleave(stride, 2))
    module: Any = made.module.get_submodule("network.module")
    for number, row in enumerate(parts.rows):
        batch = made.on_device(made.collate([example(made, number, (70, 90))], training=False), None)
        with torch.inference_mode():
            features = module.backbone(batch.inputs[0])
            whole = module(batch.inputs[0])
            assert len(row) == 4  # The finest two are not used.
            mean = {name: one.mean((2, 3), keepdim=True).expand_as(one) for name, one in features.items()}
            coarse = module.enlarge["16"](module.head(features["32"])) + module.skips["16"](mean["16"])
            coarse = module.enlarge["8"](coarse) + module.skips["8"](mean["8"])
        expected = [
            nn.functional.interpolate(one, (64, 96), mode="bilinear")[0].argmax(0) for one in (coarse, whole)
        ]
        shown = [one.places for one in row if one.places is not None]
        assert len(shown) == 4
        assert np.array_equal(shown[0], expected[0].numpy())
        assert np.array_equal(shown[2], expected[1].numpy())
        assert not np.array_equal(shown[0], shown[2])
        counted = shown[3] >= 0
        share = float((shown[2][counted] == shown[3][counted]).mean())
        assert row[2].name == f"with stride 8: {share:.0%} correct".replace("%", " %")
    assert parts.classes == tiny_maps.CLASSES


def test_a_backbone_of_one_map_has_nothing_to_compare() -> None:
    module = nn.Sequential()
    module.add_module("backbone", nn.Conv2d(3, 4, 3))
    seen = Seen(torch.zeros(1, 3, 8, 8), (0, 0, 8, 8), np.zeros((8, 8), np.int64))
    assert list(strips(module, [seen], ("a", "b"), MEAN, STD)) == []


def test_the_mask_is_that_of_the_surest_detection() -> None:
    torch.manual_seed(1)  # Of random weights some see nothing surely, or two things alike.
    detector = tiny_instances.detector()
    rcnn: Any = detector.module.get_submodule("module")
    pixels = torch.randn((3, 64, 96), generator=torch.Generator().manual_seed(3))
    size = (64, 90)
    with torch.inference_mode():
        found = detector.module(pixels[None], torch.tensor([size]))[0]
    (strip,) = masks_inside.strips(rcnn, [(pixels, size)], tiny_instances.CLASSES, MEAN, STD)
    proposals, taken, box, mask, pasted = strip.rows[0]
    label, score = tiny_instances.CLASSES[int(found["labels"][0]) - 1], float(found["scores"][0])
    assert box.name == f"class and refined box: {label}, {score:.2f}"
    assert box.boxes[0] == pytest.approx(found["boxes"][0].tolist(), abs=1e-3)
    assert taken.boxes[0] in proposals.boxes or len(proposals.boxes) == 20
    small = found["masks"][0, 0]
    assert torch.equal(mask.pixels[0], (255 * small).round().to(torch.uint8))
    assert pasted.places is not None
    assert pasted.places.shape == size
    assert (pasted.places == 0).any() == bool((small >= 0.5).any())


def test_the_directions_in_which_features_vary_most_are_colours() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([9.0, 5, 2, *[0.01] * 9])[:, None, None]
    maps = [spread * rng.normal(size=(12, *size)) for size in ((9, 7), (4, 6))]
    flat = np.concatenate([one.reshape(12, -1).T for one in maps])
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    expected = flat @ vectors[:, ::-1][:, :3]
    pictures = principal([torch.from_numpy(one) for one in maps])
    assert [tuple(one.shape) for one in pictures] == [(3, 9, 7), (3, 4, 6)]
    found = np.concatenate([one.reshape(3, -1).numpy().astype(float) for one in pictures], axis=1)
    for own, one in zip(expected.T, found, strict=True):
        assert abs(np.corrcoef(own, one)[0, 1]) > 0.97


@pytest.mark.parametrize("channels", [1, 2])
def test_features_of_few_channels_and_flat_ones_have_a_picture(channels: int) -> None:
    assert principal([torch.zeros(channels, 3, 4)])[0].shape == (3, 3, 4)
    assert principal([torch.rand(channels, 1, 1)])[0].shape == (3, 1, 1)


def test_a_picture_is_what_it_was_before_it_was_normalised() -> None:
    picture = torch.randint(0, 256, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    assert torch.equal(unnormalized((picture / 255 - mean) / std, MEAN, STD).long(), picture)
