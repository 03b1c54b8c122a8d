"""U-Net over the features of a classifier.

Ronneberger, Fischer and Brox 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation"
(MICCAI): an up-convolution, what the encoder had at that size is joined, two 3 x 3 convolutions follow.
Against the paper the encoder is a trained classifier, convolutions keep the size of their maps, and batch
normalisation follows each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

WIDTHS: Mapping[int, int] = {16: 256, 8: 128, 4: 64, 2: 32, 1: 16}
"""Channels of the decoder by the stride of its maps."""


class UNet(nn.Module):
    """A backbone's features, enlarged by two each time and joined with those of that size.

    ``channels`` are the backbone's by their stride, 32 among them; a stride that it lacks has no skip.
    """

    def __init__(self, backbone: nn.Module, channels: Mapping[int, int], classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.enlarge, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        below = channels[32]
        for stride, width in WIDTHS.items():
            self.enlarge[str(stride)] = nn.ConvTranspose2d(below, width, 2, 2)
            self.decoder[str(stride)] = _two_convolutions(width + channels.get(stride, 0), width)
            below = width
        self.classifier = nn.Conv2d(below, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of (N, 3, H, W), both sides multiples of 32."""
        features = self.backbone(pixels)
        found = features["32"]
        for stride in self.decoder:
            found = self.enlarge[stride](found)
            if stride in features:
                found = torch.cat([found, features[stride]], 1)
            found = self.decoder[stride](found)
        logits: Tensor = self.classifier(found)
        return logits


def _two_convolutions(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
        channels = width
    return nn.Sequential(*layers)
