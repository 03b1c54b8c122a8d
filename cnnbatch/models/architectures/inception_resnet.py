"""Inception-ResNet-v1 with 512 numbers a face, FaceNet's network as facenet-pytorch has it.

Szegedy et al. 2016 (arXiv 1602.07261, figures 10 to 14), with David Sandberg's embedding behind it. The names
and shapes in its state dict are those of ``facenet_pytorch.InceptionResnetV1``, so that the files
``20180402-114759-vggface2.pt`` and ``20180408-102900-casia-webface.pt`` load key by key, without the layer of
their classes, ``logits``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIMENSIONS = 512

CLASSIFIER = "logits."
"""What begins the names of the layer of classes in published files, which an embedding has no use for."""

Sides = tuple[int, int]
Layer = tuple[int, Sides, int]
"""A convolution in a branch: outputs, (height, width) of the kernel, and the stride."""

ONE, THREE = (1, 1), (3, 3)


class InceptionResnetV1(nn.Module):
    """Maps chips (N, 3, 160, 160), normalised, to embeddings (N, 512), whose lengths are not 1.

    facenet-pytorch divides by their length within the network; here that is the embedder's normalisation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = Convolution(3, 32, THREE, stride=2)
        self.conv2d_2a = Convolution(32, 32, THREE)
        self.conv2d_2b = Convolution(32, 64, THREE, padding=(1, 1))
        self.conv2d_3b = Convolution(64, 80, ONE)
        self.conv2d_4a = Convolution(80, 192, THREE)
        self.conv2d_4b = Convolution(192, 256, THREE, stride=2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = reduction_a()
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = reduction_b()
        self.repeat_3 = nn.Sequential(*(block8(scale=0.2) for _ in range(5)))
        self.block8 = block8(scale=1.0, rectified=False)
        self.dropout = nn.Dropout(0.6)
        self.last_linear = nn.Linear(1792, DIMENSIONS, bias=False)
        self.last_bn = nn.BatchNorm1d(DIMENSIONS, eps=0.001)

    def forward(self, chips: Tensor) -> Tensor:
        """Return the embeddings."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(chips)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        x = self.dropout(x.mean(dim=(2, 3)))
        embeddings: Tensor = self.last_bn(self.last_linear(x))
        return embeddings


class Convolution(nn.Module):
    """A convolution, batch normalisation and a ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sides, stride: int = 1, padding: Sides = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Branches over one map, ``branch0`` and on; the channels of their maps stand one behind the other."""

    def __init__(self, inputs: int, branches: Sequence[Sequence[Layer]]) -> None:
        super().__init__()
        self._names = [f"branch{place}" for place in range(len(branches))]
        for name, layers in zip(self._names, branches, strict=True):
            self.add_module(name, _branch(inputs, layers))

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [self.get_submodule(name)(x) for name in self._names]


def _branch(inputs: int, layers: Sequence[Layer]) -> nn.Module:
    """Return convolutions in a row: those of stride 1 keep the size, those of stride 2 have no padding."""
    made: list[nn.Module] = []
    for outputs, kernel, stride in layers:
        padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        made.append(Convolution(inputs, outputs, kernel, stride, padding))
        inputs = outputs
    return made[0] if len(made) == 1 else nn.Sequential(*made)


class Residual(Branches):
    """Adds ``scale`` times what the branches give, brought back to as many channels, to their input."""

    def __init__(
        self, channels: int, branches: Sequence[Sequence[Layer]], scale: float, rectified: bool = True
    ) -> None:
        super().__init__(channels, branches)
        self.scale, self.rectified = scale, rectified
        self.conv2d = nn.Conv2d(sum(layers[-1][0] for layers in branches), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same size."""
        y = self.conv2d(torch.cat(self._maps(x), dim=1)) * self.scale + x
        return F.relu(y) if self.rectified else y


class Reduction(Branches):
    """Halves a map: the branches beside a max-pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of more channels, and of about half the sides."""
        return torch.cat([*self._maps(x), F.max_pool2d(x, 3, stride=2)], dim=1)


def block35() -> Residual:
    """Return Inception-ResNet-A, on 35 x 35 at the paper's size and 17 x 17 at FaceNet's."""
    first: Layer = (32, ONE, 1)
    branches = [[first], [first, (32, THREE, 1)], [first, (32, THREE, 1), (32, THREE, 1)]]
    return Residual(256, branches, scale=0.17)


def block17() -> Residual:
    """Return Inception-ResNet-B."""
    first: Layer = (128, ONE, 1)
    return Residual(896, [[first], [first, (128, (1, 7), 1), (128, (7, 1), 1)]], scale=0.1)


def block8(scale: float, rectified: bool = True) -> Residual:
    """Return Inception-ResNet-C."""
    first: Layer = (192, ONE, 1)
    return Residual(1792, [[first], [first, (192, (1, 3), 1), (192, (3, 1), 1)]], scale, rectified)


def reduction_a() -> Reduction:
    """Return Reduction-A: 256 channels become 896."""
    return Reduction(256, [[(384, THREE, 2)], [(192, ONE, 1), (192, THREE, 1), (256, THREE, 2)]])


def reduction_b() -> Reduction:
    """Return Reduction-B: 896 channels become 1792."""
    first: Layer = (256, ONE, 1)
    long = [first, (256, THREE, 1), (256, THREE, 2)]
    return Reduction(896, [[first, (384, THREE, 2)], [first, (256, THREE, 2)], long])
