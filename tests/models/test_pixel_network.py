"""A segmenter on its device: what overflows, and networks that take no tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models import Segmenter
from cnnbatch.models.pixel_network import PixelNetwork, tiling
from cnnbatch.models.segmenter import own_size
from cnnbatch.types import Runtime
from tests import tiny_segmenter

CLASSES = ("a", "b")


class Loud(nn.Module):
    """Logits that float16 can't hold."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, :2] * 1e6


class Fixed(nn.Module):
    """Takes one size of inputs only, as many ONNX files do."""

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[2:] != (200, 200):
            raise RuntimeError("expected 200 x 200 pixels")
        return pixels[:, :2]


def test_outputs_that_overflow_float16_are_told() -> None:
    network = PixelNetwork(Segmenter(Loud(), own_size(), CLASSES), Runtime("cpu", precision="fp16"))
    batch, sizes = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([[8, 8, 8, 8]])
    with pytest.raises(FloatingPointError, match="use compute.precision=bf16 or fp32"):
        network(batch, sizes)
    plain = PixelNetwork(Segmenter(Loud(), own_size(), CLASSES), Runtime("cpu"))
    assert plain(batch, sizes)[0].numbers.shape == (8, 8)


def test_pictures_of_one_batch_may_have_originals_of_several_sizes() -> None:
    network = PixelNetwork(tiny_segmenter.convolutions(), Runtime("cpu"))
    batch = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    found = network(batch, torch.tensor([[32, 48, 60, 90], [20, 31, 20, 31]]))
    assert [tuple(one.numbers.shape) for one in found] == [(60, 90), (20, 31)]
    alone = network(batch[1:], torch.tensor([[20, 31, 20, 31]]))
    assert torch.equal(found[1].numbers, alone[0].numbers)


def test_tiles_are_as_large_as_the_network_needs() -> None:
    segmenter = tiny_segmenter.convolutions()
    found = tiling(segmenter, 100, 16, 2)
    assert (found.tile, found.overlap, found.stride, found.alignment, found.at_once) == (128, 16, 4, 32, 2)
    wide = Segmenter(segmenter.module, own_size(48), segmenter.classes)
    assert tiling(wide, 100, 16, 1).tile == 96 * 2


def test_networks_that_take_no_tiles_are_told() -> None:
    with pytest.raises(UserError, match="task.tile: the network takes no tiles, such as 64 x 64 pixels"):
        tiling(Segmenter(Fixed(), own_size(), CLASSES), 128, 16, 1)
    valid = nn.Conv2d(3, 2, 3)
    with pytest.raises(UserError, match="task.tile: expected a network whose logits are a whole part"):
        tiling(Segmenter(valid, own_size(), CLASSES), 128, 16, 1)
