"""Every classifier of torchvision under its own name, with its published weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from cnnbatch import weights as files
from cnnbatch.models.network import Architecture, Network, library
from cnnbatch.models.preprocessing import Preprocessing


def names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    return list(torchvision.models.list_models(module=torchvision.models))


def imagenet_classes() -> tuple[str, ...]:
    """Return the 1,000 class names of ImageNet, as torchvision writes them."""
    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


def architecture(name: str) -> Architecture:
    """Return torchvision's classifier ``name``."""
    known: type[WeightsEnum] = torchvision.models.get_model_weights(name)
    return Architecture(
        name=name,
        library=library("torchvision"),
        classes=imagenet_classes(),
        make=partial(_make, name),
        preprocessing=lambda weights: _preprocessing(published_entry(known, weights)),
        published=partial(_published, name, known),
        names=tuple(known.__members__),
        adapt=_modern_names if name.startswith("densenet") else lambda state: state,
        licence=partial(licence_of, known),
    )


def published_entry(known: type[WeightsEnum], weights: str) -> WeightsEnum:
    """Return the entry that ``weights`` names, or whose file it is; for any other file the default's."""
    if weights in known.__members__:
        return known[weights]
    file = weights.rpartition("/")[2]
    default: WeightsEnum = known["DEFAULT"]
    return next((entry for entry in known if entry.url.endswith(f"/{file}")), default)


def licence_of(known: type[WeightsEnum], weights: str) -> str | None:
    """Return the licence of published weights, by name or by file; that of any other file is not known."""
    entry = published_entry(known, weights)
    published = weights in known.__members__ or entry.url.endswith(f"/{weights.rpartition('/')[2]}")
    licence: str | None = entry.meta.get("license") if published else None
    return licence


def _preprocessing(entry: WeightsEnum) -> Preprocessing:
    preset = entry.transforms()
    crop = preset.crop_size[0]
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=(crop, crop),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _make(name: str, classes: int, state: Mapping[str, Tensor], size: tuple[int, int]) -> nn.Module:
    module: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **_arguments(name, state, size)
    )
    return module


def _arguments(name: str, state: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Any]:
    """Return what the builders of some families need besides the number of classes."""
    if name in ("googlenet", "inception_v3"):
        # Their published weights expect TensorFlow's input range, as torchvision sets it with `weights=`.
        auxiliary = any(key.lower().startswith("aux") for key in state)
        return {"transform_input": True, "aux_logits": auxiliary, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": size[0]}
    if name == "maxvit_t":
        return {"input_size": size}
    return {}


def _published(name: str, known: type[WeightsEnum], weights: str, sha256: str | None) -> Network:
    """Load published weights through torchvision, which checks the hash in the file's name."""
    entry = published_entry(known, weights)
    module, path = load_published(name, entry, sha256)
    return Network(
        module=module,
        preprocessing=_preprocessing(entry),
        classes=tuple(entry.meta["categories"]),
        licence=entry.meta.get("license"),
        weights=files.digest(path),
        library=library("torchvision"),
    )


def load_published(name: str, entry: WeightsEnum, sha256: str | None) -> tuple[nn.Module, Path]:
    """Return torchvision's model ``name`` with published weights, and the file that they came from.

    Raises:
        UserError: they are neither on this machine nor to be had, or have another SHA-256.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    try:
        module: nn.Module = torchvision.models.get_model(name, weights=entry, progress=False)
    except (URLError, OSError) as error:
        raise files.unreachable([str(cached), entry.url], error) from error
    except RuntimeError as error:
        if "invalid hash value" not in str(error):
            raise
        raise files.unreachable([str(cached), entry.url], error) from error
    files.verify(cached, sha256)
    return module, cached


_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def _modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with ``norm.1``, as old DenseNet files have it, under the module's name ``norm1``."""
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
