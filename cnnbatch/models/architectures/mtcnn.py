"""The three networks of MTCNN: proposals in a whole picture, then refinement of crops, then landmarks.

Source: Zhang, Zhang, Li and Qiao 2016, "Joint Face Detection and Alignment using Multi-task Cascaded
Convolutional Networks", https://arxiv.org/abs/1604.02878, figure 2. Names of layers, the order in which maps
are flattened and the pools that round up are those of the published weights (facenet-pytorch 2.6.0).

All of them are meant for ``channels_last``, in which their convolutions are twice as fast on a CPU, and have
activations and pools of their own for it: with so few channels torch's take longer than the convolutions.
Inputs are float32, (value - 127.5) / 128.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, prelu

STRIDE, CELL = 2, 12
"""In pixels of a level: P-Net answers for windows of 12 x 12, every second pixel."""


class PNet(nn.Module):
    """The proposal network, fully convolutional; 6,632 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), _PReLU(10)
        self.pool1 = _MaxPool(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), _PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), _PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (N, h, w) and the features (N, h, w, 32) of all windows of (N, 3, H, W).

        Output row i is of the input rows from 2 i to 2 i + 11.
        """
        features = self.pool1(self.prelu1(self.conv1(pixels)))
        features = self.prelu3(self.conv3(self.prelu2(self.conv2(features)))).permute(0, 2, 3, 1)
        # The softmax of two logits is the sigmoid of their difference, which one product of matrices gives.
        weight, bias = (one[1:] - one[:1] for one in _head(self.conv4_1))
        return linear(features, weight, bias).squeeze(-1).sigmoid(), features

    def offsets(self, features: Tensor) -> Tensor:
        """Return how windows of these features (K, 32) are to be moved, (K, 4).

        Offsets are those of x1, y1, x2 and y2, in shares of the window's sides.
        """
        return linear(features, *_head(self.conv4_2))


class RNet(nn.Module):
    """The refinement network, for crops of 24 x 24 pixels; 100,178 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), _PReLU(28)
        self.pool1 = _MaxPool(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), _PReLU(48)
        self.pool2 = _MaxPool(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), _PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (K,) and the offsets (K, 4) of crops (K, 3, 24, 24)."""
        features = self.pool1(self.prelu1(self.conv1(crops)))
        features = self.pool2(self.prelu2(self.conv2(features)))
        features = self.prelu3(self.conv3(features))
        features = self.prelu4(self.dense4(_flat(features)))
        return _face(self.dense5_1(features)), self.dense5_2(features)


class ONet(nn.Module):
    """The output network, for crops of 48 x 48 pixels; 389,040 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), _PReLU(32)
        self.pool1 = _MaxPool(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), _PReLU(64)
        self.pool2 = _MaxPool(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), _PReLU(64)
        self.pool3 = _MaxPool(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), _PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores (K,), offsets (K, 4) and landmarks (K, 5, 2) of crops (K, 3, 48, 48).

        Landmarks are (x, y) in shares of the window's sides, from its top left.
        """
        features = self.pool1(self.prelu1(self.conv1(crops)))
        features = self.pool2(self.prelu2(self.conv2(features)))
        features = self.pool3(self.prelu3(self.conv3(features)))
        features = self.prelu4(self.conv4(features))
        features = self.prelu5(self.dense5(_flat(features)))
        points = self.dense6_3(features).unflatten(1, (2, 5)).transpose(1, 2)  # All x come before all y.
        return _face(self.dense6_1(features)), self.dense6_2(features), points


class _PReLU(nn.PReLU):
    """A PReLU for maps in ``channels_last``: torch's own goes pixel by pixel there, six times as slowly."""

    def forward(self, features: Tensor) -> Tensor:
        """Return what torch's does for maps (N, C, H, W)."""
        if not features.is_contiguous(memory_format=torch.channels_last):
            return super().forward(features)
        channels, height, width = features.shape[1:]
        rows = features.permute(0, 2, 3, 1).reshape(-1, width * channels)
        found = prelu(rows, self.weight.expand(width, channels).reshape(-1))
        return found.view(-1, height, width, channels).permute(0, 3, 1, 2)


class _MaxPool(nn.MaxPool2d):
    """A pool of every second place for maps in ``channels_last``, by comparing whole rows, then columns.

    Two to seven times as fast as torch's on a CPU, which compares each window's pixels anew.
    """

    kernel_size: int

    def forward(self, features: Tensor) -> Tensor:
        """Return what torch's does for maps (N, C, H, W)."""
        if features.device.type != "cpu" or not features.is_contiguous(memory_format=torch.channels_last):
            pooled: Tensor = super().forward(features)
            return pooled
        by_rows = _maxima(features.permute(0, 2, 3, 1), 1, self.kernel_size)
        return _maxima(by_rows, 2, self.kernel_size).permute(0, 3, 1, 2)


def _maxima(values: Tensor, dim: int, size: int) -> Tensor:
    """Return the maxima of windows of ``size`` along ``dim``, two apart; the last may be cut off."""
    count = -(-(values.shape[dim] - size) // 2) + 1
    first, *others = (_every_second(values, dim, start, count) for start in range(size))
    found = first.clone(memory_format=torch.contiguous_format)
    for other in others:
        found.narrow(dim, 0, other.shape[dim]).clamp_(min=other)
    return found


def _every_second(values: Tensor, dim: int, start: int, count: int) -> Tensor:
    """Return at most ``count`` of the places ``start``, ``start`` + 2 and so on."""
    return values[(slice(None),) * dim + (slice(start, start + 2 * count - 1, 2),)]


def _head(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the weight (C, D) and the bias (C,) of a convolution of 1 x 1."""
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias


def _flat(features: Tensor) -> Tensor:
    """Return maps (K, C, H, W) as (K, W * H * C), in which order the published weights read them."""
    return features.permute(0, 3, 2, 1).flatten(1)


def _face(answers: Tensor) -> Tensor:
    """Return the softmax over the first two answers at its second place, which is that of a face."""
    return (answers[..., 1] - answers[..., 0]).sigmoid()
