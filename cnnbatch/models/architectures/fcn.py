"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s.

Long, Shelhamer and Darrell 2015, "Fully Convolutional Networks for Semantic Segmentation" (CVPR); layers,
paddings and crops as in the authors' own definitions, voc-fcn32s, voc-fcn16s and voc-fcn8s-atonce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

Stride = Literal[8, 16, 32]
"""At which stride the last skip comes in: FCN-8s, FCN-16s or, without any, FCN-32s."""

PAPER_CHANNELS = 4096
"""Of fc6 and fc7."""
PAPER_SCALES: Mapping[int, float] = {16: 0.01, 8: 0.0001}
"""By which pool4 (stride 16) and pool3 (stride 8) are multiplied: VGG's activations there are that large."""

_PADDING = 100
_SKIP_CROPS: Mapping[int, int] = {16: 5, 8: 9}  # Where the scores of a skip begin to lie over those above.
_LAST_CROPS: Mapping[Stride, int] = {32: 19, 16: 27, 8: 31}
_DEVIATION = 0.01
_POOLS: Mapping[int, int] = {2: 8, 3: 16, 4: 32}  # By their number from 0, the strides of VGG's pools.


class VGG16(nn.Module):
    """VGG16 up to pool5 (Simonyan and Zisserman 2014), whose pools round up, as Caffe's do.

    ``padding`` is that of the first convolution.
    """

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.features: nn.Sequential = torchvision.models.vgg16(weights=None, init_weights=False).features
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        first.padding = (padding, padding)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """Return pool3, pool4 and pool5 of (N, 3, H, W), by their stride, as text."""
        found: dict[str, Tensor] = {}
        pools = 0
        for layer in self.features:
            pixels = layer(pixels)
            if isinstance(layer, nn.MaxPool2d):
                if pools in _POOLS:
                    found[str(_POOLS[pools])] = pixels
                pools += 1
        return found


class FCN(nn.Module):
    """Scores of a backbone's features at stride 32, fused with those of earlier features.

    Logits stay at the stride of the last skip: enlarging them to the picture is left to whoever takes them.
    Feature maps of skips are multiplied by ``scales``; their scores begin at zero, so that a network begins
    as the one with a skip less.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Mapping[int, int],
        classes: int,
        stride: Stride = 8,
        width: int = 512,
        scales: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head(channels[32], width, classes, padding=3)
        self._scales = {skip: (scales or {}).get(skip, 1.0) for skip in _skips(stride)}
        self.skips = nn.ModuleDict({str(skip): _zero(channels[skip], classes) for skip in self._scales})
        self.enlarge = nn.ModuleDict({str(skip): _deconvolution(classes, 1) for skip in self._scales})

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H / stride, W / stride) of (N, 3, H, W), both sides multiples of 32."""
        features = self.backbone(pixels)
        logits: Tensor = self.head(features["32"])
        for skip, scale in self._scales.items():
            scores = self.skips[str(skip)](features[str(skip)] * scale)
            logits = self.enlarge[str(skip)](logits) + scores
        return logits


class PaperFCN(nn.Module):
    """The paper's own network on VGG16: 100 pixels of padding, 4,096 channels, and all that is cropped."""

    def __init__(self, classes: int, stride: Stride = 8, width: int = PAPER_CHANNELS) -> None:
        super().__init__()
        self.backbone = VGG16(_PADDING)
        self.head = head(512, width, classes, padding=0)
        self._scales = {skip: PAPER_SCALES[skip] for skip in _skips(stride)}
        self.skips = nn.ModuleDict(
            {str(skip): _zero(512 if skip == 16 else 256, classes) for skip in self._scales}
        )
        self.enlarge = nn.ModuleDict({str(skip): _deconvolution(classes, 0) for skip in self._scales})
        self.last = FixedDeconvolution(stride)
        self._crop = _LAST_CROPS[stride]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H, W) of (N, 3, H, W), whatever its sides."""
        features = self.backbone(pixels)
        logits: Tensor = self.head(features["32"])
        for skip, scale in self._scales.items():
            logits = self.enlarge[str(skip)](logits)
            scores = self.skips[str(skip)](features[str(skip)] * scale)
            logits = logits + _cropped(scores, logits, _SKIP_CROPS[skip])
        return _cropped(self.last(logits), pixels, self._crop)


class FixedDeconvolution(nn.Module):
    """Bilinear enlargement as a deconvolution of every class by itself, which is not learned."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self._factor = factor
        self.register_buffer("weight", bilinear_kernel(factor), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """Return (N, C, factor * (h + 1), factor * (w + 1)) of (N, C, h, w)."""
        classes = scores.shape[1]
        weight = self.get_buffer("weight").expand(classes, 1, -1, -1)
        return nn.functional.conv_transpose2d(scores, weight, stride=self._factor, groups=classes)


def head(channels: int, width: int, classes: int, padding: int) -> nn.Sequential:
    """Return fc6 and fc7 as convolutions of 7 x 7 and 1 x 1, with dropout, and the scores (section 4.1)."""
    score = nn.Conv2d(width, classes, 1)
    nn.init.normal_(score.weight, std=_DEVIATION)
    layers: dict[str, nn.Module] = {
        "fc6": nn.Conv2d(channels, width, 7, padding=padding),
        "relu6": nn.ReLU(inplace=True),
        "drop6": nn.Dropout2d(),
        "fc7": nn.Conv2d(width, width, 1),
        "relu7": nn.ReLU(inplace=True),
        "drop7": nn.Dropout2d(),
        "score": score,
    }
    found = nn.Sequential()
    for name, layer in layers.items():
        found.add_module(name, layer)
    return found


def bilinear_kernel(factor: int) -> Tensor:
    """Return the filter (1, 1, 2 * factor, 2 * factor) that enlarges by an even ``factor``, bilinear.

    Caffe's filler ``bilinear``: 1 - |x / factor - c| along each side, c = (2 * factor - 1) / (2 * factor).
    """
    line = 1 - (torch.arange(2 * factor) / factor - (2 * factor - 1) / (2 * factor)).abs()
    return torch.outer(line, line)[None, None]


def _skips(stride: Stride) -> Sequence[int]:
    return [skip for skip in (16, 8) if skip >= stride and stride < 32]


def _zero(channels: int, classes: int) -> nn.Conv2d:
    """Return the scores of a skip, which begin at zero (section 4.2)."""
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _deconvolution(classes: int, padding: int) -> nn.ConvTranspose2d:
    """Return an enlargement by 2 that is learned and begins as bilinear (section 4.2)."""
    layer = nn.ConvTranspose2d(classes, classes, 4, 2, padding, bias=False)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        places = torch.arange(classes)
        layer.weight[places, places] = bilinear_kernel(2)[0, 0]
    return layer


def _cropped(scores: Tensor, like: Tensor, start: int) -> Tensor:
    """Return a part of scores from (start, start) on, as large as ``like``."""
    height, width = like.shape[2], like.shape[3]
    return scores[:, :, start : start + height, start : start + width]
