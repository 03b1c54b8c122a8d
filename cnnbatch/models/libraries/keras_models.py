"""Every model of Keras Applications that Keras' torch backend runs, as ``keras/NAME``.

The network, its padding and its preprocessing are Keras' own; pictures are resized as
``keras.utils.load_img(target_size=...)`` does by default: squashed to the input, each pixel the nearest.
Nothing here imports Keras before a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models.libraries.keras_table import MODELS, Colours, KerasModel
from cnnbatch.models.libraries.torchvision_models import imagenet_classes
from cnnbatch.models.network import Architecture, PublishedFile, library
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files

if TYPE_CHECKING:
    from cnnbatch.models.libraries.keras_layers import Size

PREFIX = "keras/"

_Colour = tuple[float, float, float]
_STD: _Colour = (0.229, 0.224, 0.225)
_COLOURS: Mapping[Colours, tuple[_Colour, _Colour]] = {
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "torch": ((0.485, 0.456, 0.406), _STD),
    "raw": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Mean and deviation of RGB by which `keras.applications.imagenet_utils.preprocess_input` can be said."""

_REFUSED = {
    "nasnetmobile": (
        "Keras itself refuses it on its torch backend, where it predicted wrongly "
        "(https://github.com/keras-team/keras/issues/18451)",
        "timm's NASNet-A-Large: task.model=timm/nasnetalarge",
    )
}


def names() -> list[str]:
    """Return the names of the Keras models, as a job gives them."""
    return [f"{PREFIX}{name}" for name in MODELS]


def is_meant(model: str) -> bool:
    """Say whether a job's model is one of Keras'."""
    return model.lower().startswith(PREFIX)


def architecture(name: str) -> Architecture:
    """Return Keras' model ``name``, in whatever case.

    Raises:
        UserError: Keras has no such model, refuses it on its torch backend, or is not installed.
    """
    model = _found(name.partition("/")[2])
    if find_spec("keras") is None:
        raise UserError(
            f"task.model: {PREFIX}{model.name} needs the package keras, which is not installed here\n"
            "  what to do: pip install 'cnnbatch[keras]'"
        )
    return Architecture(
        name=f"{PREFIX}{model.name}",
        library=library("keras"),
        classes=imagenet_classes(),
        make=partial(_make, model),
        preprocessing=lambda weights: preprocessing(model),
        default=(model.url, model.digest),
        adapt=partial(_adapted, model),
        recognised=partial(_recognised, model),
    )


def _recognised(model: KerasModel, path: Path) -> PublishedFile | None:
    """Return the one file that Keras publishes for a model, where that lies at ``path``."""
    if model.digest is None or not files.is_file_of(path, model.digest):
        return None
    return PublishedFile(f"Keras' {model.name}", preprocessing(model), imagenet_classes())


def _found(name: str) -> KerasModel:
    known = {one.lower(): one for one in MODELS}
    if name.lower() in known:
        return MODELS[known[name.lower()]]
    if name.lower() in _REFUSED:
        reason, instead = _REFUSED[name.lower()]
        raise UserError(f"task.model: {PREFIX}{name}: {reason}\n  what to do: use {instead}")
    near = meant(name.lower(), known)
    for lower, own in known.items():
        near = near.replace(f" {lower}?", f" {PREFIX}{own}?")
    raise UserError(
        f"task.model: Keras Applications has no model {name!r}{near}\n  expected one of {', '.join(MODELS)}"
    )


def preprocessing(model: KerasModel) -> Preprocessing:
    """Return Keras' own preprocessing as a value; the order of the channels is the network's."""
    mean, std = _COLOURS[model.colours]
    size = (model.side, model.side)
    return Preprocessing(size, size, "nearest-exact", mean, std, "squash")


def _make(model: KerasModel, classes: int, _state: Mapping[str, Tensor], size: Size) -> nn.Module:
    from cnnbatch.models.libraries import keras_layers

    return keras_layers.classifier(model, classes, size)


def _adapted(model: KerasModel, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return what Keras' files hold under the module's names; what has them already stays."""
    if not any("/" in name for name in state):
        return state
    found = dict(_renamed(model, state))
    if "head.weight" in found:
        from cnnbatch.models.libraries.keras_layers import head_weight

        found["head.weight"] = head_weight(found["head.weight"])
    return _with_one_normalization(found) if model.family == "efficientnet" else found


def _renamed(model: KerasModel, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from cnnbatch.models.libraries.keras_layers import places

    where = places(model.name)
    if any(name.startswith("layers/") for name in state):
        return {where.paths.get(name, name): tensor for name, tensor in state.items()}
    layers: dict[str, list[str]] = {}
    for name in state:
        layers.setdefault(name.partition("/")[0], []).append(name)
    if len(layers) != len(where.layers):  # Of another architecture, which the names will tell.
        return state
    names: dict[str, str] = {}
    for came, known in zip(layers.values(), where.layers, strict=True):
        names.update(zip(came, known, strict=False))  # What is left over will be told as unexpected.
    return {names.get(name, name): tensor for name, tensor in state.items()}


def _with_one_normalization(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put into the variance what Keras multiplies by when it builds EfficientNet for its published weights.

    Their variance is ImageNet's deviation, so that Keras divides by its root twice over; the model
    here is the one that it builds for all other weights, which divides once
    (https://github.com/tensorflow/tensorflow/issues/49930).
    """
    name = "features.layers.normalization.variance"
    deviation = torch.tensor(_STD)
    if name in state and state[name].shape == (3,) and torch.allclose(state[name].float(), deviation):
        return {**state, name: state[name] * deviation}
    return state
