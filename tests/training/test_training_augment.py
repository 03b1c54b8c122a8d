"""Random changes are torchvision's, drawn from the picture's own seed; mixing is as the papers have it."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from cnnbatch.config.train import Augment
from cnnbatch.tasks.recipes import augment

PICTURE = torch.randint(0, 256, (3, 40, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


@pytest.mark.parametrize("name", augment.OPERATIONS)
@pytest.mark.parametrize("strength", [0, 9, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_of_randaugment_is_torchvisions(name: str, strength: int, sign: int) -> None:
    operation, magnitude, signed = augment.OPERATIONS[name]
    value = magnitude(strength, (40, 56)) * (sign if signed else 1)
    oracle = v2.RandAugment(fill=7)
    magnitudes, is_signed = oracle._AUGMENTATION_SPACE[THEIRS[name]]
    strengths = magnitudes(31, 40, 56)
    theirs = float(strengths[strength]) if strengths is not None else 0.0
    assert is_signed == signed
    expected = oracle._apply_image_or_video_transform(
        PICTURE,
        THEIRS[name],
        theirs * (sign if signed else 1),
        InterpolationMode.NEAREST,
        {torch.Tensor: [7.0] * 3},
    )
    found = operation(PICTURE, value, [7.0] * 3)
    # Their strengths are float32, and a product that is cut to an integer may be one less by that.
    assert int((found.int() - expected.int()).abs().max()) <= 1
    assert float((found != expected).float().mean()) < 0.02


def test_what_a_picture_gets_follows_from_its_draw() -> None:
    how = Augment(shift=0.2, colour=0.3, randaugment=2)
    one, same, other = (augment.changed(PICTURE, how, Random(seed), [0.0] * 3) for seed in ("1", "1", "2"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    still = Augment(flip=False)
    assert torch.equal(augment.changed(PICTURE, still, Random(1), [0.0] * 3), PICTURE)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_tones_are_a_power_and_a_cast(layout: str) -> None:
    pixels = PICTURE if layout == "planes" else PICTURE.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for seed in range(5):
        found = augment.coloured(pixels, Augment(gamma=1.5), Random(seed))
        oracle = Random(seed)
        expected = (255 * (PICTURE / 255) ** 1.5 ** oracle.uniform(-1, 1)).round().to(torch.uint8)
        assert (found.int() - expected.int()).abs().max() <= 1
        cast = augment.coloured(pixels, Augment(cast=0.2), Random(seed)).float() / PICTURE.clamp(min=1)
        bright = (PICTURE > 60) & (PICTURE < 200)
        means = [float(cast[channel][bright[channel]].mean()) for channel in range(3)]
        assert all(0.79 < mean < 1.21 for mean in means)
        assert len({round(mean, 2) for mean in means}) > 1


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.05, 1.0), st.integers(0, 100))
def test_a_random_crop_lies_inside(height: int, width: int, least: float, seed: int) -> None:
    top, left, high, wide = augment.random_crop((height, width), least, Random(seed))
    assert 0 <= top <= top + high <= height
    assert 0 <= left <= left + wide <= width
    assert high > 0
    assert wide > 0


def test_crops_have_the_areas_of_torchvisions() -> None:
    draw = Random(0)
    ours = [augment.random_crop((200, 300), 0.3, draw) for _ in range(2000)]
    torch.manual_seed(0)
    oracle = v2.RandomResizedCrop(10, scale=(0.3, 1.0))
    theirs = [oracle.make_params([torch.empty(3, 200, 300)]) for _ in range(2000)]
    areas = [torch.tensor([float(high * wide) for _, _, high, wide in ours])]
    areas.append(torch.tensor([float(one["height"] * one["width"]) for one in theirs]))
    for part in (0.1, 0.5, 0.9):
        assert float(areas[0].quantile(part)) == pytest.approx(float(areas[1].quantile(part)), rel=0.06)


def test_cutmix_counts_the_pixels_that_it_pastes() -> None:
    for seed in range(50):
        kind, part, (top, left, height, width) = augment.mixing(Augment(cutmix=1.0), (32, 48), Random(seed))
        assert kind == "cutmix"
        assert part == pytest.approx(1 - height * width / (32 * 48))
        assert top + height <= 32
        assert left + width <= 48
    assert augment.mixing(Augment(), (32, 48), Random(0))[0] == "none"
    parts = [augment.mixing(Augment(mixup=0.2), (32, 32), Random(seed))[1] for seed in range(2000)]
    assert sum(parts) / 2000 == pytest.approx(0.5, abs=0.04)
    assert sum(0.1 < part < 0.9 for part in parts) / 2000 < 0.5  # alpha 0.2: mostly near one of the two
