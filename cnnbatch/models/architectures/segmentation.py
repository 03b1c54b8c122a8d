"""This package's own segmenters by their names; most are a decoder's with a classifier of torchvision behind.

``unet_resnet18`` is U-Net over ResNet-18, ``fcn8s_mobilenet_v2`` FCN-8s over MobileNetV2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from cnnbatch.models.architectures.fcn import FCN, PAPER_SCALES, VGG16, PaperFCN, Stride
from cnnbatch.models.architectures.feature_maps import backbone, levels
from cnnbatch.models.architectures.pyramid import PyramidNet
from cnnbatch.models.architectures.segnet import SegNet
from cnnbatch.models.architectures.unet import UNet
from cnnbatch.models.libraries import torchvision_models
from cnnbatch.models.network import library
from cnnbatch.models.segmenter import SegmenterArchitecture, own_size

_DIVISOR = 32  # of the sides of inputs, so that maps fit each other at every stride
_VGG_CHANNELS = {8: 256, 16: 512, 32: 512}
_CONNECTED = {"head.fc6": "classifier.0", "head.fc7": "classifier.3"}
"""Where the paper's convolutions come from in VGG16 (section 4.1)."""

_Decoder = Callable[[nn.Module, Mapping[int, int], int], nn.Module]
"""From a backbone, its channels by stride and the number of classes to a segmenter."""

_FCN_STRIDES: Mapping[str, Stride] = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}

_DECODERS: Mapping[str, _Decoder] = {
    **{name: partial(FCN, stride=stride) for name, stride in _FCN_STRIDES.items()},
    "unet": UNet,
    "pyramid": PyramidNet,
}

_WHOLE: Mapping[str, tuple[str, Callable[[int], nn.Module], int]] = {
    "segnet": ("vgg16_bn", SegNet, _DIVISOR),
    "fcn32s_paper": ("vgg16", partial(PaperFCN, stride=32), 1),
    "fcn16s_paper": ("vgg16", partial(PaperFCN, stride=16), 1),
    "fcn8s_paper": ("vgg16", partial(PaperFCN, stride=8), 1),
}
"""Networks that have one backbone: its classifier, the module for a number of classes, and the divisor."""

FAMILIES = (*_WHOLE, *(f"{name}_CLASSIFIER" for name in _DECODERS))
"""The names as a person reads them."""


def names() -> list[str]:
    """Return all names, also of combinations that turn out not to fit."""
    classifiers = torchvision_models.names()
    return [*_WHOLE, *(f"{decoder}_{classifier}" for decoder in _DECODERS for classifier in classifiers)]


def architecture(name: str) -> SegmenterArchitecture:
    """Return the segmenter of one of the `names`.

    Raises:
        UserError: the classifier behind it has no features that a segmenter can be made of.
    """
    if name in _WHOLE:
        classifier, make, divisor = _WHOLE[name]
        return _architecture(name, classifier, make, divisor)
    decoder, _, classifier = name.partition("_")
    if decoder in _FCN_STRIDES and classifier == "vgg16":
        return _architecture(name, classifier, partial(_on_vgg16, _FCN_STRIDES[decoder]), _DIVISOR)
    levels(classifier)
    return _architecture(name, classifier, partial(_make, _DECODERS[decoder], classifier), _DIVISOR)


def _architecture(
    name: str, classifier: str, make: Callable[[int], nn.Module], divisor: int
) -> SegmenterArchitecture:
    how = own_size(divisor, fitted=divisor > 1)
    connected = _CONNECTED if name.endswith("_paper") else {}
    return SegmenterArchitecture(name, library("cnnbatch"), make, how, classifier, connected=connected)


def _make(decoder: _Decoder, classifier: str, classes: int) -> nn.Module:
    found = levels(classifier)
    return decoder(backbone(classifier, found), {level.stride: level.channels for level in found}, classes)


def _on_vgg16(stride: Stride, classes: int) -> nn.Module:
    """Return an FCN on the pools of VGG16, as the paper has it, but for its padding and 4,096 channels."""
    return FCN(VGG16(), _VGG_CHANNELS, classes, stride, scales=PAPER_SCALES)
