"""Every classifier of timm as ``timm/NAME`` or ``timm/NAME.TAG``, with its published weights."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import EntryNotFoundError, HTTPError  # type: ignore[attr-defined]
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models.libraries.torchvision_models import imagenet_classes
from cnnbatch.models.network import Architecture, Network, PublishedFile, library
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in timm's own order


def names() -> list[str]:
    """Return the names of timm's models, as a job gives them."""
    return [f"timm/{name}" for name in timm.list_models()]


def architecture(name: str) -> Architecture:
    """Return timm's classifier ``name``, with or without the tag of its weights.

    Raises:
        UserError: timm has no such model.
    """
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise UserError(f"task.model: timm has no model {base!r}{meant(base, timm.list_models())}")
    config = _config(name)
    return Architecture(
        name=f"timm/{name}",
        library=library("timm"),
        classes=_classes(config),
        make=partial(_make, name),
        preprocessing=lambda weights: preprocessing(config),
        published=partial(_published, name, config),
        names=("DEFAULT",),
        recognised=partial(_recognised, base),
    )


def _recognised(base: str, path: Path) -> PublishedFile | None:
    """Return which of an architecture's published files lies at ``path``, by the hash that is in its name."""
    for tag in timm.list_pretrained(f"{base}.*"):
        config = _config(tag)
        if files.is_named_by_hash(path, str(config.get("url") or "")):
            classes, licence = _classes(config), config.get("license")
            return PublishedFile(f"timm's {tag}", preprocessing(config), classes, licence)
    return None


def _config(name: str) -> dict[str, Any]:
    """Return timm's description of the weights that ``name`` stands for."""
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UserError(f"task.model: timm has no weights {name!r}{meant(name, tags)}") from error
    return asdict(found) if found else {}


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names, as far as timm knows them: ImageNet's, or WordNet's for its larger sets."""
    subset = infer_imagenet_subset(dict(config))
    if subset in (None, "imagenet-1k"):
        return imagenet_classes() if subset else ()
    wordnet = ImageNetInfo(str(subset))
    synsets: list[str] = wordnet.label_names()  # type: ignore[no-untyped-call]
    words = [wordnet.label_name_to_description(synset) for synset in synsets]
    shared = {word for word, count in Counter(words).items() if count > 1}
    return tuple(
        f"{word} ({synset})" if word in shared else word for word, synset in zip(words, synsets, strict=True)
    )


def preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Return timm's own evaluation transform as a value."""
    data: dict[str, Any] = resolve_data_config(pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]
    height, width = data["input_size"][1:]
    crop = data["crop_pct"]
    resize = (math.floor(height / crop), math.floor(width / crop))
    if data["interpolation"] not in ("nearest", "bilinear", "bicubic"):
        raise UserError(f"task.model: the interpolation {data['interpolation']!r} is not supported")
    fit = {"squash": "squash", "border": "contain"}.get(data["crop_mode"], "cover")
    return Preprocessing(
        resize=resize[0] if fit == "cover" and height == width else resize,
        crop=(height, width),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        fit=fit,  # type: ignore[arg-type]
    )


def _make(name: str, classes: int, _state: Mapping[str, Tensor], _size: tuple[int, int]) -> nn.Module:
    return _create(name, num_classes=classes)


def _create(name: str, **arguments: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of timm's builders use what torch has deprecated
        module: nn.Module = timm.create_model(name, **arguments)
    return module


def _published(name: str, config: dict[str, Any], _weights: str, sha256: str | None) -> Network:
    """Load timm's weights from a file that was hashed first, through timm's own conversion."""
    if not config.get("num_classes"):
        raise UserError(f"task.model: timm/{name} is published without a classifier; give task.weights")
    path = _file(name, config)
    files.verify(path, sha256)
    module = _create(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    return Network(
        module=module,
        preprocessing=preprocessing(config),
        classes=_classes(config),
        licence=config.get("license"),
        weights=files.digest(path),
        library=library("timm"),
    )


def _file(name: str, config: Mapping[str, Any]) -> Path:
    """Return the local copy of the weights, fetched where timm would fetch them."""
    hub, url = config.get("hf_hub_id"), config.get("url")
    if not hub and not url:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        known = f"; known: {', '.join('timm/' + tag for tag in tags[:5])}" if tags else ""
        raise UserError(f"task.weights: timm publishes no weights for {name!r}{known}")
    if not hub:
        return files.fetch_published(str(url), None)
    try:
        return _from_hub(str(hub), config.get("hf_hub_filename"))
    except (OSError, HTTPError) as error:  # huggingface_hub's own are one or the other.
        raise files.unreachable([f"https://huggingface.co/{hub}", HF_HUB_CACHE], error) from error


def _from_hub(repository: str, file: str | None) -> Path:
    repository, _, revision = repository.partition("@")
    first, second = (file, file) if file else _HUB_FILES
    try:
        return Path(hf_hub_download(repository, first, revision=revision or None))
    except EntryNotFoundError:
        return Path(hf_hub_download(repository, second, revision=revision or None))
