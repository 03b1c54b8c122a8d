"""SegNet: an encoder of convolutions and pools, and a decoder that puts values back where pools took them.

Badrinarayanan, Kendall and Cipolla 2017, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for
Image Segmentation" (PAMI), section 3; the encoder is VGG16's thirteen convolutions, batch normalisation with
each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import Tensor, nn
from torch.nn import functional

_DECODER = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))
"""Channels of the decoder's convolutions, behind each unpooling; the classes come last."""

Pooled = tuple[Tensor, Sequence[Tensor], Sequence[Sequence[int]]]
"""Features, and of each pool where it took its values and what size it was given."""


class Encoder(nn.Module):
    """VGG16 with batch normalisation up to pool5, which remembers where its pools found their maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.features: nn.Sequential = torchvision.models.vgg16_bn(weights=None, init_weights=False).features

    def forward(self, pixels: Tensor) -> Pooled:
        """Return the features of (N, 3, H, W) at stride 32, and places and sizes pool by pool."""
        places, sizes = list[Tensor](), list[Sequence[int]]()
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                sizes.append(pixels.shape[2:])
                pixels, found = functional.max_pool2d(pixels, 2, 2, return_indices=True)
                places.append(found)
            else:
                pixels = layer(pixels)
        return pixels, places, sizes


class SegNet(nn.Module):
    """The whole network; its logits have the picture's size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = Encoder()
        self.decoder = nn.ModuleList()
        channels = 512
        for widths in _DECODER:
            self.decoder.append(_convolutions(channels, widths))
            channels = widths[-1]
        self.classifier = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of (N, 3, H, W), whatever its sides."""
        features, places, sizes = self.backbone(pixels)
        for block, found, size in zip(self.decoder, reversed(places), reversed(sizes), strict=True):
            features = block(unpooled(features, found, size))
        logits: Tensor = self.classifier(features)
        return logits


def unpooled(features: Tensor, places: Tensor, size: Sequence[int]) -> Tensor:
    """Return features (N, C, *size): those given (N, C, h, w) where their pool took them, and 0 elsewhere.

    ``places`` (N, C, h, w) are numbers of pixels, row by row, as ``max_pool2d`` returns them.
    """
    found: Tensor = functional.max_unpool2d(features, places, (2, 2), (2, 2), output_size=list(size))
    return found


def _convolutions(channels: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        convolution = nn.Conv2d(channels, width, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # Section 3.1, He et al. 2015.
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)
