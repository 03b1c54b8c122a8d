"""A model of Keras Applications as a torch module that predicts, trains, moves and saves as any other.

Keras runs its own layers. Their variables are registered here under names that don't depend on what
was built before, as parameters where they are trained and as buffers where they are counted, and the
classification layer is torch's, so that heads are found and replaced as in other networks. The price:
Keras' variables have to be pointed at torch's tensors again whenever those are exchanged.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.libraries.keras_table import MODELS, Colours, KerasModel
from cnnbatch.models.weights import keras_files

Size = tuple[int, int]
"""(height, width) in pixels."""

_BACKEND = "KERAS_BACKEND"


def package() -> Any:
    """Import Keras with torch as its backend.

    Raises:
        UserError: it is not installed, or this process has it with another backend.
    """
    wanted = os.environ.get(_BACKEND)
    if "keras" not in sys.modules and wanted in (None, "", "torch"):
        os.environ[_BACKEND] = "torch"
        return keras_files.package("keras", "task.model")
    found = sys.modules["keras"].backend.backend() if "keras" in sys.modules else wanted
    if found != "torch":
        raise UserError(
            f"task.model: Keras models run on Keras' torch backend here, but this process has {found}\n"
            f"  what to do: unset {_BACKEND}, or set it to torch, before the process starts"
        )
    return sys.modules["keras"]


class KerasClassifier(nn.Module):
    """Maps floats (N, 3, H, W), as `Features` wants them, to logits (N, C)."""

    def __init__(self, features: Features, head: nn.Linear) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.features(pixels))
        return logits


def classifier(model: KerasModel, classes: int, size: Size) -> KerasClassifier:
    """Return a model with Keras' own random weights; they follow from torch's generator.

    Raises:
        UserError: Keras is not to be had, or refuses the size.
    """
    whole = _whole(model, classes, size)
    return KerasClassifier(Features(model.name, size, whole), _linear(whole))


class Features(nn.Module):
    """All layers of a Keras model but the last: floats (N, 3, H, W) in RGB to features (N, D).

    ``layers`` has the variables of each layer that has any; ``train`` and ``eval`` of one of them say
    whether its batch normalisation uses, and counts, the batch's statistics.
    """

    def __init__(self, name: str, size: Size, whole: Any = None) -> None:
        super().__init__()
        self._name, self._size = name, size
        self._device = package().device
        whole = whole or _whole(MODELS[name], 1, size)
        *stateful, last = _stateful(whole)
        with self._device("cpu"):
            inside = package().Model(whole.inputs, last.layer.input)
            self.layers = nn.ModuleDict({one.name: LayerVariables(one.layer) for one in stateful})
        self._inside = (inside,)  # In a tuple, where torch does not see its variables a second time.
        self.register_load_state_dict_post_hook(Features._loaded)  # type: ignore[no-untyped-call]
        self._relink()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # Keras' own Python has hundreds of graphs.
    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of each picture."""
        pictures = arranged(pixels, MODELS[self._name].colours)
        with self._device(str(pixels.device)):  # Keras would take everything to the first CUDA device.
            found: Tensor = self._inside[0](pictures, training=self.training)
        return found.flatten(1)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._relink()
        return self

    def _loaded(self, _keys: Any) -> None:
        self._relink()

    def _relink(self) -> None:
        """Point Keras at the tensors that are registered now, and have it compute in their type."""
        some = next(self.parameters())
        policy = str(some.dtype).removeprefix("torch.")
        for layer in _flat(self._inside[0]):
            if layer.dtype_policy.name != policy:
                layer.dtype_policy = policy
        with self._device(str(some.device)):
            for variables in self.layers.values():
                variables.link()  # type: ignore[operator]

    def __reduce__(self) -> tuple[Any, ...]:
        """Have copies built anew: Keras copies a model through a file, and the links with it."""
        frozen = [name for name, one in self.named_parameters() if not one.requires_grad]
        training = [name for name, part in self.named_modules() if part.training]
        return _rebuilt, (self._name, self._size, self.state_dict(), frozen, training)


def arranged(pixels: Tensor, colours: Colours) -> Tensor:
    """Return (N, 3, H, W) in RGB as Keras wants it: (N, H, W, 3), in BGR for some families."""
    rows = pixels.permute(0, 2, 3, 1)
    return rows.flip(3) if colours == "caffe" else rows


def _rebuilt(
    name: str, size: Size, state: dict[str, Tensor], frozen: list[str], training: list[str]
) -> Features:
    made = Features(name, size)
    some = next(one for one in state.values() if one.is_floating_point())
    made.to(some.device, some.dtype).load_state_dict(state)
    for parameter in frozen:
        made.get_parameter(parameter).requires_grad_(False)
    made.eval()
    for name in training:
        part = made.get_submodule(name)
        part.train() if isinstance(part, LayerVariables) else setattr(part, "training", True)
    return made


class LayerVariables(nn.Module):
    """The variables of one Keras layer, under Keras' names."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self._layer = (layer,)
        self._counts = isinstance(layer, package().layers.BatchNormalization)
        for name, variable in _named(layer):
            if variable.trainable:
                self.register_parameter(name, variable.value)
            else:
                self.register_buffer(name, variable.value.detach())

    def link(self) -> None:
        """Point the layer's variables at the tensors that are registered here."""
        [layer] = self._layer
        for name, variable in _named(layer):
            variable._value = getattr(self, name)
        if hasattr(layer, "finalize_state"):  # `Normalization` keeps what follows from its variables.
            layer.finalize_state()

    def train(self, mode: bool = True) -> Self:
        """Set whether batch normalisation uses the batch's statistics while the network trains.

        To Keras, that is whether the layer is trainable at all; what gets gradients stays as it is.
        """
        super().train(mode)
        if self._counts:
            wanted = [parameter.requires_grad for parameter in self.parameters()]
            self._layer[0].trainable = mode
            for parameter, gradient in zip(self.parameters(), wanted, strict=True):
                parameter.requires_grad_(gradient)
        return self


@dataclass(frozen=True, slots=True)
class Places:
    """Where Keras' files keep the tensors of a `KerasClassifier`.

    ``paths``: a path in a ``.weights.h5`` -> the name of the tensor. ``layers``: the names by layer, in
    the order of an ``.h5`` of before Keras 3.
    """

    paths: dict[str, str]
    layers: tuple[tuple[str, ...], ...]


@cache
def places(name: str) -> Places:
    """Return where files keep the tensors of Keras' model ``name``."""
    model = MODELS[name]
    whole = _whole(model, 1, (model.side, model.side), device="meta")
    *stateful, last = _stateful(whole)
    prefixes = [*((one, f"features.layers.{one.name}.") for one in stateful), (last, "head.")]
    paths, names = {}, {}
    for one, prefix in prefixes:
        for number, (own, variable) in enumerate(_named(one.layer)):
            own = {"kernel": "weight"}.get(own, own) if one is last else own
            paths[f"{one.path}/vars/{number}"] = names[id(variable)] = prefix + own
    tops = [layer.trainable_weights + layer.non_trainable_weights for layer in whole.layers]
    return Places(paths, tuple(tuple(names[id(one)] for one in top) for top in tops if top))


def head_weight(kernel: Tensor) -> Tensor:
    """Return Keras' kernel of a classification layer, (D, C) or (1, 1, D, C), as torch's weight (C, D)."""
    return kernel.reshape(kernel.shape[-2:]).T.contiguous() if kernel.ndim in (2, 4) else kernel


@dataclass(frozen=True, slots=True)
class _Stateful:
    """A Keras layer with variables: its name, and its path in a ``.weights.h5``."""

    name: str
    path: str
    layer: Any


def _whole(model: KerasModel, classes: int, size: Size, device: str = "cpu") -> Any:
    """Return Keras' own model, logits and all."""
    keras = package()
    build = getattr(keras.applications, model.name)
    with _defaults(keras), keras.device(device):
        try:
            return build(weights=None, classes=classes, classifier_activation=None, input_shape=(*size, 3))
        except ValueError as error:
            raise UserError(
                f"task.model: keras/{model.name} can't be built for {size[0]} x {size[1]} pixels: {error}\n"
                f"  what to do: look at task.preprocessing.crop; expected {model.side} pixels, and "
                f"{model.least} at least"
            ) from error


@contextmanager
def _defaults(keras: Any) -> Iterator[None]:
    """Build as Keras does out of the box, whatever the user's ``keras.json`` says; seeds follow torch's."""
    layout, policy = keras.config.image_data_format(), keras.config.dtype_policy()
    drawn = random.getstate()
    random.seed(int(torch.randint(1 << 62, ())))
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        random.setstate(drawn)
        keras.config.set_image_data_format(layout)
        keras.config.set_dtype_policy(policy)


def _linear(whole: Any) -> nn.Linear:
    """Return the classification layer as torch's, with the values that Keras drew; it is the last of all."""
    with package().device("cpu"):
        kernel, bias = (variable.value.detach() for _, variable in _named(_stateful(whole)[-1].layer))
    weight = head_weight(kernel)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def _named(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield a layer's variables; one without a name of its own has a number of Keras' that is left out."""
    for variable in layer.weights:
        yield re.sub(r"^variable_\d+$", "variable", variable.name), variable


def _flat(model: Any) -> Iterator[Any]:
    yield model
    for layer in model.layers:
        yield from _flat(layer) if hasattr(layer, "layers") else (layer,)


def _stateful(model: Any) -> list[_Stateful]:
    """Return the layers with variables, in the order in which they run."""
    return list(_walk(model, "", Counter()))


def _walk(model: Any, path: str, unnamed: Counter[str]) -> Iterator[_Stateful]:
    """Name layers as Keras' files do, by kind and number, and those that have no own name so as well.

    The numbers that Keras gives to such layers count all that this process ever built.
    """
    kinds: Counter[str] = Counter()
    for layer in model.layers:
        kind = _snake_case(type(layer).__name__)
        place = f"{path}layers/{_numbered(kind, kinds)}"
        if hasattr(layer, "layers"):
            yield from _walk(layer, f"{place}/", unnamed)
        elif layer.weights:
            own = layer.name
            name = _numbered(kind, unnamed) if re.fullmatch(rf"{kind}(_\d+)?", own) else own
            yield _Stateful(name, place, layer)


def _numbered(kind: str, counted: Counter[str]) -> str:
    number = counted[kind]
    counted[kind] += 1
    return f"{kind}_{number}" if number else kind


def _snake_case(name: str) -> str:
    """Return a class's name as Keras writes it in files and in the names that it makes up."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
