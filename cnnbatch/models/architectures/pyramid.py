"""A classifier's features, pyramid pooling, and a light decoder: made for processors, and for small data.

Pyramid pooling is that of Zhao et al. 2017, "Pyramid Scene Parsing Network" (CVPR), section 3.2, with other
sizes; the decoder adds the features of each stride, projected, to what comes from below, as feature pyramids
do (Lin et al. 2017, arXiv 1612.03144), and mixes them by depthwise separable convolutions. The backbone keeps
its stride of 32: dilated depthwise convolutions cost more than the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

BINS = (8, 4, 2, 1)
"""Into how many parts a side is pooled."""

_WIDTH, _BIN_WIDTH = 128, 32
_DECODER: Mapping[int, int] = {16: 128, 8: 96, 4: 96, 2: 48}  # Channels by stride.


class PyramidNet(nn.Module):
    """The whole network; its logits are at stride 2, or 4 where the backbone has no features at 2.

    ``channels`` are the backbone's by their stride, 32 among them.
    """

    def __init__(self, backbone: nn.Module, channels: Mapping[int, int], classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = PyramidPooling(channels[32])
        self.skips, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        width = _WIDTH
        for stride, wanted in _DECODER.items():
            if stride in channels:
                self.skips[str(stride)] = nn.Conv2d(channels[stride], width, 1)
                self.decoder[str(stride)] = _separable(width, wanted)
                width = wanted
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H / 2, W / 2) of (N, 3, H, W), both sides multiples of 32."""
        features = self.backbone(pixels)
        found = self.pooling(features["32"])
        for stride in self.decoder:
            skip = self.skips[stride](features[stride])
            found = self.decoder[stride](_enlarged(found, skip) + skip)
        logits: Tensor = self.classifier(found)
        return logits


class PyramidPooling(nn.Module):
    """Features projected, with their means over ever larger parts of the picture beside them, and mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = _pointwise(channels, _WIDTH)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), _pointwise(_WIDTH, _BIN_WIDTH)) for bins in BINS
        )
        self.mix = _pointwise(_WIDTH + _BIN_WIDTH * len(BINS), _WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, 128, h, w) of (N, C, h, w)."""
        found = self.project(features)
        means = [_enlarged(pool(found), found) for pool in self.pools]
        mixed: Tensor = self.mix(torch.cat([found, *means], 1))
        return mixed


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    return interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


def _pointwise(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))


def _separable(channels: int, width: int) -> nn.Sequential:
    """Return a 3 x 3 convolution of each channel by itself, and a 1 x 1 one of all."""
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU(True), _pointwise(channels, width))
