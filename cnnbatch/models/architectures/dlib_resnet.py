"""dlib's ResNet for face recognition (King 2017), read from dlib's own file: 128 numbers a face.

29 convolutions, without batch normalisation: at inference dlib has an affine layer in its place, a factor
and a summand a channel, which is folded into the convolution before it. (dlib's
``examples/dnn_face_recognition_ex.cpp``, ``anet_type``.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cnnbatch.errors import UserError
from cnnbatch.models.face_conventions import DLIB
from cnnbatch.models.weights import dlib_file
from cnnbatch.models.weights.dlib_file import DlibLayer, DlibNetwork

DIMENSIONS = 128


@dataclass(frozen=True)
class Level:
    """``blocks`` residual blocks of as many ``channels``; ``halves``: the first of them has a stride of 2."""

    channels: int
    blocks: int
    halves: bool = True


LEVELS = (Level(32, 3, halves=False), Level(64, 4), Level(128, 3), Level(256, 3), Level(256, 1))
"""From the input to the output: dlib's alevel4 to alevel0."""


class DlibResNet(nn.Module):
    """Maps chips (N, 3, 150, 150), normalised, to embeddings (N, 128), which have no fixed length."""

    def __init__(self, levels: Sequence[Level] = LEVELS, dimensions: int = DIMENSIONS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, levels[0].channels, 7, stride=2)
        self.blocks = nn.Sequential(*_blocks(levels))
        self.embedding = nn.Linear(levels[-1].channels, dimensions, bias=False)

    def forward(self, chips: Tensor) -> Tensor:
        """Return the embeddings."""
        x = F.relu(self.stem(chips))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.blocks(x)
        embeddings: Tensor = self.embedding(x.mean(dim=(2, 3)))
        return embeddings


def _blocks(levels: Sequence[Level]) -> Iterator[Block]:
    channels = levels[0].channels
    for level in levels:
        for place in range(level.blocks):
            yield Block(channels, level.channels, halves=level.halves and place == 0)
            channels = level.channels


class Block(nn.Module):
    """Two convolutions beside a shortcut; where the block halves, the shortcut is an average pooling.

    A convolution that halves has no padding. So its map can be a row and a column smaller than the pooled
    one, and has more channels: both are extended with zeros to the larger of their sizes (dlib's
    ``add_prev``).
    """

    def __init__(self, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of (N, inputs, h, w): (N, outputs, h, w), or about half that size."""
        y = self.conv2(F.relu(self.conv1(x)))
        if not self.halves:
            return F.relu(y + x)
        shortcut = F.avg_pool2d(x, 2)
        sides = [max(pair) for pair in zip(y.shape[1:], shortcut.shape[1:], strict=True)]
        return F.relu(_extended(y, sides) + _extended(shortcut, sides))


def _extended(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Return ``x`` with zeros behind its channels, rows and columns, up to as many as ``sides`` say."""
    channels, height, width = (side - have for side, have in zip(sides, x.shape[1:], strict=True))
    return F.pad(x, (0, width, 0, height, 0, channels)) if channels or height or width else x


# ---- dlib's file ------------------------------------------------------------------------------


def load_weights(module: DlibResNet, path: Path) -> None:
    """Load a file of dlib's into ``module``, in place.

    Raises:
        UserError: it is damaged, or of another of dlib's networks; it names the first layer that differs.
    """
    network = dlib_file.load(path)
    if wrong := _misfit(module, network):
        raise UserError(
            f"task.weights: {str(path)!r} is a network of dlib's, but not the one of "
            f"dlib_face_recognition_resnet_model_v1.dat: {wrong}\n"
            "  what to do: give that file, or leave task.weights out for the one of the package"
        )
    with torch.no_grad():
        _fill(module, [layer for layer in network.layers if len(layer.parameters)])


def _misfit(module: DlibResNet, network: DlibNetwork) -> str:
    """Say where a file differs from the module, if it does."""
    if network.size != DLIB.size:
        return f"expected chips of {DLIB.size}, got {network.size}"
    if not np.allclose(network.means, DLIB.mean, atol=1e-3):
        return f"expected the means {DLIB.mean}, got {network.means}"
    wanted = list(_layers(module))
    if len(wanted) != len(network.layers):
        return f"expected {len(wanted)} layers, got {len(network.layers)}"
    for place, (want, came) in enumerate(zip(wanted, network.layers, strict=True), 1):
        if _said(want) != _said(came):
            return f"expected layer {place} to be {_said(want)}, got {_said(came)}"
    return ""


def _said(layer: DlibLayer) -> str:
    return " ".join(map(str, (layer.kind, *layer.numbers, *layer.shapes)))


def _layers(module: DlibResNet) -> Iterator[DlibLayer]:
    """Yield the layers that dlib writes of such a network, without their parameters."""
    yield from _convolution(module.stem)
    yield DlibLayer("relu_")
    yield DlibLayer("max_pool_2", (3, 3, 2, 2, 0, 0))
    for block in module.blocks:
        assert isinstance(block, Block)
        yield from _block(block)
    yield DlibLayer("avg_pool_2", (0, 0, 1, 1, 0, 0))
    outputs, inputs = module.embedding.weight.shape
    yield DlibLayer("fc_2", (outputs, inputs, 1), ((inputs, outputs, 1, 1), (0, 0, 0, 0)))


def _block(block: Block) -> Iterator[DlibLayer]:
    yield DlibLayer("tag")
    yield from _convolution(block.conv1)
    yield DlibLayer("relu_")
    yield from _convolution(block.conv2)
    if block.halves:
        yield from (DlibLayer("tag"), DlibLayer("tag"), DlibLayer("avg_pool_2", (2, 2, 2, 2, 0, 0)))
    yield DlibLayer("add_prev_")
    yield DlibLayer("relu_")


def _convolution(conv: nn.Conv2d) -> Iterator[DlibLayer]:
    summands = (1, conv.out_channels, 1, 1)
    numbers = (conv.out_channels, *conv.kernel_size, *conv.stride, *map(int, conv.padding))
    yield DlibLayer("con_4", numbers, (tuple(conv.weight.shape), summands))
    yield DlibLayer("affine_", (0,), (summands, summands))


def _fill(module: DlibResNet, layers: Sequence[DlibLayer]) -> None:
    *pairs, last = layers
    convolutions = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    for conv, (convolution, affine) in zip(
        convolutions, zip(pairs[::2], pairs[1::2], strict=True), strict=True
    ):
        weight, summand = _tensors(convolution)
        factor, offset = _tensors(affine)
        conv.weight.copy_(torch.from_numpy(weight * factor.reshape(-1, 1, 1, 1)))
        assert conv.bias is not None
        conv.bias.copy_(torch.from_numpy((summand * factor + offset).ravel()))
    weight, _ = _tensors(last)
    module.embedding.weight.copy_(torch.from_numpy(weight[:, :, 0, 0].T))


def _tensors(layer: DlibLayer) -> list[NDArray[np.float64]]:
    """Return a layer's tensors in float64, in which they are folded."""
    ends = np.cumsum([math.prod(shape) for shape in layer.shapes])[:-1]
    parts = np.split(layer.parameters.astype(np.float64), ends)
    return [part.reshape(shape) for part, shape in zip(parts, layer.shapes, strict=True)]
