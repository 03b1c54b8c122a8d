"""Every classifier of torchvision under its own name, with its published weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import HTTPError, URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from cnnbatch.errors import UserError
from cnnbatch.models.network import Architecture, Network, PublishedFile, library
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files


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
        recognised=partial(_recognised, known),
    )


def published_entry(known: type[WeightsEnum], weights: str) -> WeightsEnum:
    """Return the entry that ``weights`` names, or whose file is called so; for any other the default."""
    if weights in known.__members__:
        return known[weights]
    file = weights.rpartition("/")[2]
    default: WeightsEnum = known["DEFAULT"]
    return next((entry for entry in known if entry.url.endswith(f"/{file}")), default)


def entry_of(known: type[WeightsEnum], path: Path) -> WeightsEnum | None:
    """Return the entry whose file lies at ``path``, whatever it is called there: its name begins the hash."""
    return next((entry for entry in known if files.is_named_by_hash(path, entry.url)), None)


def _recognised(known: type[WeightsEnum], path: Path) -> PublishedFile | None:
    entry = entry_of(known, path)
    if entry is None:
        return None
    return PublishedFile(
        name=f"torchvision's {entry}",
        preprocessing=_preprocessing(entry),
        classes=tuple(entry.meta["categories"]),
        licence=entry.meta.get("license"),
    )


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
        UserError: they have another SHA-256 than the job's.
        EnvironmentFault: they are neither on this machine nor to be had, or what came is another file.
    """
    cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    try:
        with _only_data():
            module: nn.Module = torchvision.models.get_model(name, weights=entry, progress=False)
    except HTTPError as error:
        raise files.unreachable([entry.url], error) from error
    except (URLError, OSError) as error:
        raise files.unreachable([str(cached), entry.url], error) from error
    except RuntimeError as error:
        if "invalid hash value" not in str(error):
            raise
        raise files.other_than_published([entry.url], str(error)) from error
    except UnpicklingError as error:
        raise UserError(
            f"task.weights: {cached}, where torch keeps what it has downloaded, is no plain state dict: "
            f"{str(error).partition(chr(10))[0]}\n  what to do: remove that file; it is fetched again"
        ) from error
    files.verify(cached, sha256)
    return module, cached


@contextmanager
def _only_data() -> Iterator[None]:
    """Have torch read what lies in its cache as data: torchvision itself would run what a pickle says."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update(before)


_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def _modern_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with ``norm.1``, as old DenseNet files have it, under the module's name ``norm1``."""
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
