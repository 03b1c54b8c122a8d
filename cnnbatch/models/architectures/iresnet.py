"""IResNet with 512 numbers a face, the network of ArcFace, as insightface publishes its weights.

Deng et al. 2019 (arXiv 1801.07698, section 3.2: "BN-Conv-BN-PReLU-Conv-BN", no stride before the second
convolution, an embedding of BN-Dropout-FC-BN). The names and shapes in its state dict are those of
insightface's ``recognition/arcface_torch/backbones/iresnet.py``, so that its files (``backbone.pth``) load
key by key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cnnbatch.models.face_conventions import ARCFACE

DIMENSIONS = 512

BLOCKS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
"""Depth -> how many blocks each of the four layers has."""

WIDTHS = (64, 128, 256, 512)


class IResNet(nn.Module):
    """Maps chips (N, 3, 112, 112), normalised, to embeddings (N, 512), whose lengths are not 1."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int] = WIDTHS, dimensions: int = DIMENSIONS
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        inputs = widths[0]
        for place, (width, count) in enumerate(zip(widths, blocks, strict=True), 1):
            self.add_module(f"layer{place}", nn.Sequential(*_layer(inputs, width, count)))
            inputs = width
        self._layers = [f"layer{place}" for place in range(1, len(widths) + 1)]
        self.bn2 = nn.BatchNorm2d(inputs)
        self.dropout = nn.Dropout(0.0)
        height, width = (side >> len(widths) for side in ARCFACE.size)
        self.fc = nn.Linear(inputs * height * width, dimensions)
        self.features = nn.BatchNorm1d(dimensions)
        self.features.weight.requires_grad_(False)  # As published: the loss sets the length.

    def forward(self, chips: Tensor) -> Tensor:
        """Return the embeddings."""
        x = self.prelu(self.bn1(self.conv1(chips)))
        for name in self._layers:
            x = self.get_submodule(name)(x)
        x = torch.flatten(self.bn2(x), 1)
        embeddings: Tensor = self.features(self.fc(self.dropout(x)))
        return embeddings


def _layer(inputs: int, outputs: int, blocks: int) -> Iterator[Block]:
    yield Block(inputs, outputs, stride=2)
    for _ in range(blocks - 1):
        yield Block(outputs, outputs, stride=1)


class Block(nn.Module):
    """Two convolutions with normalisation before, between and after, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the map; nothing is rectified behind the sum."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        total: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return total


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
