"""A network as one value, so that architecture, weights, preprocessing and class names never drift apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from cnnbatch.errors import UserError
from cnnbatch.models.passes import trying
from cnnbatch.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Network:
    """A classifier: ``module`` maps floats (N, 3, H, W) to logits (N, len(classes)).

    ``weights`` is the SHA-256 of the file they came from, or ``random:SEED``; ``library`` is what
    defines the architecture, with major.minor; ``licence`` is the weights', where it is known. ``notes`` are
    sentences on what was assumed of the weights, for the person who runs the job.
    """

    module: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    licence: str | None = None
    weights: str = ""
    library: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedFile:
    """What a publisher says of a file of weights; ``name`` is what the publisher calls these weights."""

    name: str
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    licence: str | None = None


@dataclass(frozen=True)
class Architecture:
    """What a model's name stands for before it has weights.

    ``make`` builds the module for a number of classes, the state dict that will be loaded (empty
    for none) and an input's (height, width). ``published`` loads weights by their own name, one of
    ``names``. ``default``, where given, is the file that ``DEFAULT`` stands for, with its SHA-256 or MD5;
    ``key_map`` and then ``adapt`` give a file's tensors the module's names. ``recognised`` says which
    published file a local one is, by its hash alone. ``preprocessing`` is that of weights by their name, and
    of the default ones for any other.
    """

    name: str
    library: str
    classes: tuple[str, ...]
    make: Callable[[int, Mapping[str, Tensor], tuple[int, int]], nn.Module]
    preprocessing: Callable[[str], Preprocessing]
    published: Callable[[str, str | None], Network] | None = None
    names: tuple[str, ...] = ()
    default: tuple[str, str | None] | None = None
    key_map: str | None = None
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda state: state
    recognised: Callable[[Path], PublishedFile | None] = lambda path: None


def library(name: str) -> str:
    """Return a package with its major.minor, as the fingerprint has it; only the name where it has none."""
    try:
        return f"{name} {'.'.join(version(name).split('.')[:2])}"
    except PackageNotFoundError:
        return name


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make what torch draws inside follow from ``seed``, and leave its generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def last_layer(module: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the classification layer and its name: what timm calls so, else the last linear or convolution.

    Raises:
        UserError: there is none.
    """
    layers = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    }
    if not layers:
        raise UserError(f"task.model: {type(module).__name__} has no linear layer and no convolution")
    own = getattr(module, "get_classifier", lambda: None)()
    own = own[0] if isinstance(own, tuple) else own
    last = next(reversed(layers.items()))
    return next(((name, layer) for name, layer in layers.items() if layer is own), last)


class WithPenultimate(nn.Module):
    """A classifier that also gives what goes into its classification layer.

    The features are (N, D); maps are averaged over their area, tokens over their number.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        name, layer = last_layer(module)
        self._last = _Keeping(layer)
        self.module = module if name else self._last
        if name:
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, self._last)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, C) and the features (N, D)."""
        logits: Tensor = self.module(pixels)
        return logits, _pooled(self._last.kept, isinstance(self._last.layer, nn.Conv2d))


@fx.wrap
def _pooled(features: Tensor, is_map: bool) -> Tensor:
    """Return one vector a picture; one step for tracers, since it asks for the shape."""
    if is_map:
        return features.mean((2, 3))
    return features if features.ndim == 2 else features.flatten(1, -2).mean(1)


class _Keeping(nn.Module):
    """A layer that keeps its input; part of the graph, so that tracers and compilers see it."""

    kept: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        self.kept = features
        found: Tensor = self.layer(features)
        return found


def check(logits: Callable[[Tensor], Tensor], crop: tuple[int, int], classes: int, model: str) -> None:
    """Run one black picture through a network, so that what does not fit is found before the first image.

    Raises:
        UserError: it refuses its input, gives other than (1, ``classes``) logits, or they are not finite.
    """
    try:
        with trying():
            found = logits(torch.zeros((1, 3, *crop), dtype=torch.uint8))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"task.model: {model} refuses an input of {crop[0]} x {crop[1]} pixels: {error}\n"
            "  what to do: look at task.preprocessing.crop, and at the model itself"
        ) from error
    if tuple(found.shape) != (1, classes):
        raise UserError(
            f"task.classes: {model} gives outputs of shape {tuple(found.shape)} for one image, "
            f"but there are {classes} class names; expected (1, {classes})"
        )
    if not bool(found.isfinite().all()):
        raise UserError(
            f"task.weights: {model} gives infinite or undefined outputs for a black picture\n"
            "  what to do: try compute.precision=fp32; if that fails as well, the weights are damaged"
        )
