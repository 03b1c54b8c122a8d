"""Every classifier of torchvision without its head, as a body that gives maps of several strides.

Its parts run one after the other, which a trial pass confirms; a network that is put together otherwise, as a
transformer of tokens is, gives no body.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cnnbatch.errors import UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.libraries import torchvision_models
from cnnbatch.models.network import Architecture, Network, last_layer
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files

STRIDES = (4, 8, 16, 32)
"""Those of a feature pyramid (Lin et al. 2017, "Feature pyramid networks for object detection")."""

_SEQUENCES = ("features", "layers", "trunk_output", "blocks")
"""What torchvision calls the parts of a network where they are in a sequence of their own."""


class Level(NamedTuple):
    """A map of a body: the part that gives it, by its name, how much smaller it is, and its channels."""

    part: str
    stride: int
    channels: int
    channels_last: bool


class Body(nn.ModuleDict):
    """The parts of a network up to its last map; they bear the names that torchvision's own bodies have."""

    def __init__(self, parts: dict[str, nn.Module], levels: Sequence[Level]) -> None:
        super().__init__(parts)
        self.levels = tuple(levels)
        self._given = {level.part: (str(number), level) for number, level in enumerate(levels)}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the maps (N, C, h, w) of the levels, called ``0``, ``1`` and so on, the largest first."""
        found, maps = dict[str, Tensor](), pixels
        for name, part in self.items():
            maps = part(maps)
            if name in self._given:
                number, level = self._given[name]
                found[number] = maps.permute(0, 3, 1, 2) if level.channels_last else maps
        return found


def body(network: Network, name: str, strides: Sequence[int] = STRIDES) -> Body:
    """Return the body of torchvision's classifier ``name``, which shares the parts of ``network``.

    It gives the last map of each of the ``strides`` that the network has.

    Raises:
        UserError: it has maps of fewer than two of them.
    """
    parts, levels = dict[str, nn.Module](), dict[int, Level]()
    for part, module, maps in _run(network):
        parts[part] = module
        stride, channels_last = _stride(maps, network.preprocessing.crop)
        levels[stride] = Level(part, stride, maps.shape[-1 if channels_last else 1], channels_last)
    given = [levels[stride] for stride in sorted(levels) if stride in strides]
    if len(given) < 2:
        raise UserError(
            f"task.model: {name} has no maps of several sizes, which a pyramid is built on\n"
            "  what to do: take another backbone, as mobilenet_v2 or resnet50"
        )
    last = [*parts].index(given[-1].part)
    return Body(dict([*parts.items()][: last + 1]), given)


def _run(network: Network) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield the parts that run one after the other, each with what it gives of a black picture."""
    maps = torch.zeros((1, 3, *network.preprocessing.crop))
    for name, part in _parts(network.module.eval()):
        if name.lower().startswith("aux"):  # A head that only training uses, beside the others.
            continue
        if isinstance(part, nn.AdaptiveAvgPool2d):  # The head begins.
            return
        try:
            with torch.no_grad():
                maps = part(maps)
        except (
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            AssertionError,
        ):  # Tokens are put together before this part.
            return
        if maps.ndim != 4 or max(maps.shape[1:3]) < 2:
            return
        yield name, part, maps


def _parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name in _SEQUENCES and isinstance(child, nn.Sequential | nn.ModuleList):
            yield from child.named_children()
        else:
            yield name, child


def _stride(maps: Tensor, crop: tuple[int, int]) -> tuple[int, bool]:
    """Return how much smaller maps are than a picture of ``crop``, and whether their channels come last."""
    sizes = maps.shape[2:], maps.shape[1:3]
    channels_last = sizes[0][0] != sizes[0][1] and sizes[1][0] == sizes[1][1]  # Those of a square are square.
    ratio = torch.tensor(crop[0] / sizes[channels_last][0])
    return int(2 ** ratio.log2().round()), channels_last


def classifier(choice: Choice, name: str) -> Network:
    """Return torchvision's classifier ``name`` with the weights that a choice names, of whatever classes.

    A file may lack the head, which a body leaves out.

    Raises:
        UserError: the weights don't fit it, or can't be had.
    """
    found = torchvision_models.architecture(name)
    weights = choice.weights.rpartition("_Weights.")[2]
    if choice.seed is not None:
        how = found.preprocessing("DEFAULT")
        return _normalised(Network(found.make(len(found.classes), {}, how.crop), how, found.classes))
    if found.published and weights in found.names:
        return _normalised(found.published(weights, choice.sha256))
    return _normalised(_from_file(choice, found))


def _from_file(choice: Choice, found: Architecture) -> Network:
    path = files.fetch(choice.weights, choice.sha256, choice.storage)
    loaded, known = files.load(path), found.recognised(path)
    key_map = files.read_key_map(choice.key_map) if choice.key_map else None
    state = found.adapt(files.rename(loaded, key_map))
    how: Preprocessing = known.preprocessing if known else found.preprocessing(path.name)
    module = found.make(len(found.classes), state, how.crop)
    head, _ = last_layer(module)
    rows = len(state.get(f"{head}.weight", found.classes))
    if rows != len(found.classes):
        module = found.make(rows, state, how.crop)
    own = f"{head.partition('.')[0]}."
    without = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(own)}
    files.apply(module, {**without, **state}, where=str(path))
    names = tuple(map(str, range(rows)))
    notes = (*loaded.notes(path), *([f"task.weights: {path.name} is {known.name}"] if known else []))
    licence = known.licence if known else None
    return Network(module, how, names, licence, files.identity(path, loaded), found.library, notes)


def _normalised(network: Network) -> Network:
    """Return the network with what it does to its inputs itself, which its body leaves out, done before."""
    if not getattr(network.module, "transform_input", False):
        return network
    half = (0.5, 0.5, 0.5)  # Inception's, from what ImageNet's other classifiers take.
    return replace(network, preprocessing=replace(network.preprocessing, mean=half, std=half))
