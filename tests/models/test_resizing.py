"""How pictures become inputs of segmenters: sizes, padding, and colours that are normalised on the device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2 as transforms

from cnnbatch.models.resizing import Canvas, Normalized, Resizing, prepare, prepare_bytes
from cnnbatch.models.segmenter import own_size

side = st.integers(1, 700)


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(2, 0, 1)


@given(side, side, st.integers(1, 600), st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_an_exact_shorter_side_is_torchvisions_resize(
    height: int, width: int, shorter: int, more: int
) -> None:
    how = Resizing("sides", (shorter, shorter + more), rounding="exact")
    found = how.resized((height, width))
    long = int(shorter * max(height, width) / min(height, width))
    if long > shorter + more and int((shorter + more) * shorter / long) == 0:
        assert min(found) == 1  # torchvision makes a side of nothing of it.
        return
    resize = transforms.Resize(shorter, max_size=shorter + more)
    small = torch.empty((1, height, width), device="meta")
    assert found == tuple(resize(small).shape[1:])


@given(side, side, st.sampled_from([1, 8, 32]))
@settings(max_examples=100, deadline=None)
def test_an_own_size_is_padded_or_made_a_multiple(height: int, width: int, divisor: int) -> None:
    padded, fitted = own_size(divisor), own_size(divisor, fitted=True)
    assert padded.resized((height, width)) == (height, width)
    shape = padded.padded((height, width))
    assert all(side <= one < side + divisor for side, one in zip((height, width), shape, strict=True))
    assert all(one % divisor == 0 for one in shape)
    assert fitted.resized((height, width)) == shape == fitted.padded(shape)


@pytest.mark.parametrize(
    "how",
    [
        own_size(32),
        own_size(),
        Resizing("letterbox", (64, 96), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), fill=0.7),
        Resizing("sides", (40, 100), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), divisor=16, fill=-1.0),
    ],
)
def test_bytes_normalised_on_the_device_are_what_floats_would_be(how: Resizing) -> None:
    pixels = picture(50, 70)
    if how.fit in ("letterbox", "sides"):
        pixels[:] = 100  # Resized in whole numbers or not, it stays the same.
    whole, in_bytes = prepare(pixels, how), prepare_bytes(pixels, how)
    assert in_bytes.pixels.dtype == torch.uint8
    assert (in_bytes.size, in_bytes.offset, in_bytes.scale) == (whole.size, whole.offset, whole.scale)
    shape = (in_bytes.pixels.shape[1], in_bytes.pixels.shape[2])
    canvas = Canvas(shape, how.offset(in_bytes.size), in_bytes.size, (50, 70))
    found = Normalized(how, "cpu")(torch.stack([in_bytes.pixels] * 2), [canvas.picture] * 2)
    assert torch.allclose(found[0], whole.pixels, atol=1e-5)
    assert torch.equal(found[0], found[1])
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_what_changes_an_input_changes_its_description() -> None:
    plain = Resizing("sides", (520, 4160))
    exact = Resizing("sides", (520, 4160), rounding="exact", antialias=True)
    assert plain.describe() == repr(plain)
    assert exact.describe() == repr(exact) + ", the shorter side exact, antialias"
    assert own_size(32).describe() != own_size(32, fitted=True).describe()
