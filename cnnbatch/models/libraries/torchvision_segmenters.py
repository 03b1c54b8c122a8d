"""Every segmenter of torchvision under its own name: FCN, DeepLabV3 and LR-ASPP.

Of torchvision's forward pass the last step is taken out, which enlarges the logits to the input: that is done
together with what enlarges them to the original, in float32. The auxiliary head, which only training needs,
is left out, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from cnnbatch.models.libraries.torchvision_models import entry_of, load_published, published_entry
from cnnbatch.models.network import library
from cnnbatch.models.resizing import Resizing
from cnnbatch.models.segmenter import PublishedWeights, SegmenterArchitecture, own_size

_BACKGROUND = {"__background__": "background"}  # What torchvision calls it, and what others do.
_AUXILIARY = "aux_classifier."
_LONGEST = 8  # times the shorter side: a longer picture is made smaller, which bounds its memory


def names() -> list[str]:
    """Return the names of torchvision's segmenters."""
    return list(torchvision.models.list_models(module=torchvision.models.segmentation))


def architecture(name: str) -> SegmenterArchitecture:
    """Return torchvision's segmenter ``name``."""
    known: type[WeightsEnum] = torchvision.models.get_model_weights(name)
    return SegmenterArchitecture(
        name=name,
        library=library("torchvision"),
        make=partial(_make, name),
        resizing=own_size(),
        classifier=name.partition("_")[2],
        classes=tuple(published_entry(known, "DEFAULT").meta["categories"]),
        aliases=_BACKGROUND,
        names=tuple(known.__members__),
        load=partial(_load, name, known),
        recognised=partial(_recognised, known),
        ignored=(_AUXILIARY,),
    )


class TorchvisionSegmenter(nn.Module):
    """A segmenter of torchvision whose logits stay as small as its classifier gives them."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.backbone: nn.Module = whole.get_submodule("backbone")
        self.classifier: nn.Module = whole.get_submodule("classifier")
        self._takes_two = isinstance(whole, torchvision.models.segmentation.LRASPP)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, h, w) of normalised floats (N, 3, H, W): an eighth of a side, rounded up."""
        features: Mapping[str, Tensor] = self.backbone(pixels)
        logits: Tensor = self.classifier(features if self._takes_two else features["out"])
        return logits


def _make(name: str, classes: int) -> TorchvisionSegmenter:
    whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return TorchvisionSegmenter(whole)


def _load(
    name: str, known: type[WeightsEnum], weights: str, sha256: str | None
) -> tuple[Mapping[str, Tensor], Path, PublishedWeights]:
    """Load published weights through torchvision, which checks the hash in the file's name."""
    entry = published_entry(known, weights)
    whole, path = load_published(name, entry, sha256)
    return whole.state_dict(), path, _published(entry)


def _recognised(known: type[WeightsEnum], path: Path) -> PublishedWeights | None:
    entry = entry_of(known, path)
    return None if entry is None else _published(entry)


def _published(entry: WeightsEnum) -> PublishedWeights:
    preset = entry.transforms()
    shorter = preset.resize_size[0]
    resizing = Resizing(
        "sides",
        (shorter, _LONGEST * shorter),
        tuple(preset.mean),
        tuple(preset.std),
        rounding="exact",
        antialias=preset.antialias,
    )
    classes, licence = tuple(entry.meta["categories"]), entry.meta.get("license")
    return PublishedWeights(f"torchvision's {entry}", resizing, classes, licence)
