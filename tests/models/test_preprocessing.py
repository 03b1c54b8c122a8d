"""Pictures reach the network as torchvision's and timm's own transforms would bring them there."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from torchvision.models import (
    EfficientNet_B2_Weights,
    MobileNet_V2_Weights,
    Swin_V2_T_Weights,
    get_model_weights,
)

from cnnbatch.models.libraries.torchvision_models import architecture, names
from cnnbatch.models.preprocessing import Normalize, Preprocessing, prepare

sides = st.integers(1, 700)


def picture(height: int, width: int) -> torch.Tensor:
    """Return a smooth random picture, uint8 (3, H, W), laid out as a decoder does."""
    rng = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    noise = rng.normal(0, 12, (height, width, 3))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy((smooth + noise).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def as_pillow(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def normalized(pixels: torch.Tensor, how: Preprocessing) -> torch.Tensor:
    prepared = prepare(pixels, (pixels.shape[1], pixels.shape[2]), how)
    return Normalize(how, "cpu", torch.float32)(prepared.pixels[None])[0]


def assert_equal_but_for_rounding(ours: torch.Tensor, theirs: torch.Tensor, how: Preprocessing) -> None:
    levels = ((ours - theirs).abs() * torch.tensor(how.std).view(3, 1, 1) * 255).round()
    assert levels.max() <= 2
    assert (levels > 0).float().mean() < (0.25 if how.fit == "squash" else 0.01)
    assert (levels > 1).float().mean() < 1e-4


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (256, 341), (90, 64), (1200, 900), (300, 300)])
@pytest.mark.parametrize(
    "weights", [MobileNet_V2_Weights.DEFAULT, EfficientNet_B2_Weights.DEFAULT, Swin_V2_T_Weights.DEFAULT]
)
def test_equals_torchvisions_transforms(weights: MobileNet_V2_Weights, size: tuple[int, int]) -> None:
    pixels = picture(*size)
    how = architecture(type(weights).__name__.removesuffix("_Weights").lower()).preprocessing("DEFAULT")
    assert_equal_but_for_rounding(normalized(pixels, how), weights.transforms()(as_pillow(pixels)), how)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (60, 200)])
@pytest.mark.parametrize(
    ("fit", "crop_mode", "crop", "crop_pct"),
    [
        ("cover", "center", (224, 224), 0.875),
        ("cover", "center", (192, 256), 0.9),
        ("squash", "squash", (240, 240), 1.0),
        ("contain", "border", (224, 224), 0.95),
        ("contain", "border", (224, 224), 1.0),
    ],
)
def test_equals_timms_transforms(
    fit: str, crop_mode: str, crop: tuple[int, int], crop_pct: float, size: tuple[int, int]
) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    theirs = transforms_imagenet_eval(
        crop, crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bicubic", mean=mean, std=std
    )
    resize = int(crop[0] / crop_pct), int(crop[1] / crop_pct)
    short = resize[0] if fit == "cover" and crop[0] == crop[1] else resize
    how = Preprocessing(short, crop, "bicubic", mean, std, fit)  # type: ignore[arg-type]
    pixels = picture(*size)
    assert_equal_but_for_rounding(normalized(pixels, how), theirs(as_pillow(pixels)), how)


@given(
    sides, sides, st.sampled_from([224, 232, (256, 256), (200, 300)]), st.sampled_from(["cover", "squash"])
)
def test_the_size_asked_of_the_decoder_is_enough_and_smaller(
    height: int, width: int, resize: int | tuple[int, int], fit: str
) -> None:
    how = Preprocessing(resize, fit=fit)  # type: ignore[arg-type]
    least = how.decode_size((height, width))
    resized = how.resized((height, width))
    if least is None:
        assert resized[0] >= height or resized[1] >= width
    else:
        assert least == resized
        assert least[0] <= height
        assert least[1] <= width


@given(sides, sides, st.sampled_from(["cover", "squash", "contain"]))
def test_every_size_gives_one_shape_laid_out_channels_last(height: int, width: int, fit: str) -> None:
    how = Preprocessing((40, 40), (32, 36), fit=fit)  # type: ignore[arg-type]
    prepared = prepare(torch.full((3, height, width), 7, dtype=torch.uint8), (height, width), how)
    assert prepared.pixels.shape == (3, 32, 36)
    assert prepared.pixels.permute(1, 2, 0).is_contiguous()
    assert (prepared.pixels == 7).any()


def test_a_smaller_decoded_picture_gives_the_same_crop() -> None:
    how = Preprocessing(64, (56, 56))
    whole = picture(600, 801)
    half = torch.nn.functional.interpolate(whole[None], (300, 401), mode="bilinear", antialias=True)[0]
    levels = (
        prepare(whole, (600, 801), how).pixels.int() - prepare(half, (600, 801), how).pixels.int()
    ).abs()
    assert levels.max() <= 4


def test_offset_and_scale_lead_back_to_the_original() -> None:
    pixels = torch.zeros((3, 400, 600), dtype=torch.uint8)
    pixels[:, 200:, 300:] = 255
    prepared = prepare(pixels, (400, 600), Preprocessing(200, (160, 160)))
    row, column = (int((prepared.pixels[0].amax(axis) > 127).int().argmax()) for axis in (1, 0))
    assert (row - prepared.offset[0]) / prepared.scale == pytest.approx(200, abs=2)
    assert (column - prepared.offset[1]) / prepared.scale == pytest.approx(300, abs=2)


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (40, 1500)])
def test_a_long_strip_looks_as_if_it_had_been_resized_whole(size: tuple[int, int]) -> None:
    how = Preprocessing(64, (56, 56))
    ramp = torch.linspace(0, 255, max(size)).round().to(torch.uint8)
    strip = ramp.view(1, 1, -1) if size[1] > size[0] else ramp.view(1, -1, 1)
    pixels = strip.expand(3, *size)
    levels = (normalized(pixels, how) - resized_whole(pixels, how)).abs().max()
    assert levels < 0.05


def resized_whole(pixels: torch.Tensor, how: Preprocessing) -> torch.Tensor:
    """Resize the whole strip with Pillow, then crop and normalise."""
    height, width = how.resized((pixels.shape[1], pixels.shape[2]))
    top, left = (height - how.crop[0]) // 2, (width - how.crop[1]) // 2
    box = (left, top, left + how.crop[1], top + how.crop[0])
    whole = np.array(as_pillow(pixels).resize((width, height), Image.Resampling.BILINEAR).crop(box))
    fractions = torch.from_numpy(whole).permute(2, 0, 1) / 255
    return (fractions - torch.tensor(how.mean).view(3, 1, 1)) / torch.tensor(how.std).view(3, 1, 1)


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit there")
def test_a_hostile_strip_costs_bounded_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepared = prepare(torch.zeros((3, 1, 3_000_000), dtype=torch.uint8), (1, 3_000_000), Preprocessing())
    assert prepared.pixels.shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalizing_equals_its_definition(dtype: torch.dtype) -> None:
    how = Preprocessing(8, (8, 6))
    batch = torch.arange(288, dtype=torch.int32).remainder(256).to(torch.uint8).view(2, 3, 8, 6)
    mean, std = torch.tensor(how.mean).view(3, 1, 1), torch.tensor(how.std).view(3, 1, 1)
    found = Normalize(how, "cpu", dtype)(batch)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, ((batch / 255 - mean) / std).to(dtype), atol=1e-5, rtol=1e-2)


def test_a_description_names_everything_that_changes_pixels() -> None:
    base = Preprocessing()
    changes: list[dict[str, object]] = [
        {"resize": 232},
        {"crop": (192, 192)},
        {"interpolation": "bicubic"},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"fit": "squash"},
    ]
    told = {base.describe(), *(replace(base, **change).describe() for change in changes)}  # type: ignore[arg-type]
    assert len(told) == len(changes) + 1


def test_every_published_preset_of_torchvision_can_be_told() -> None:
    for name in names():
        for entry in get_model_weights(name):
            how = architecture(name).preprocessing(entry.name)
            preset = entry.transforms()
            assert (how.resize, how.crop[0]) == (preset.resize_size[0], preset.crop_size[0])
            assert how.interpolation == preset.interpolation.value


@pytest.mark.parametrize("size", [(64, 48), (331, 500), (223, 1024), (30, 40), (224, 224)])
def test_nearest_exact_takes_pillows_pixels(size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    how = Preprocessing((224, 200), (224, 200), "nearest-exact", fit="squash")
    found = prepare(torch.from_numpy(array).permute(2, 0, 1), size, how).pixels.permute(1, 2, 0)
    expected = np.asarray(Image.fromarray(array).resize((200, 224), Image.Resampling.NEAREST))
    assert np.array_equal(found.numpy(), expected)
    assert how.decode_size((4000, 3000)) is None
