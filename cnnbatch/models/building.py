"""From a model's name and its weights' name to a `Network`; never with weights that nobody asked for."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor, nn

from cnnbatch.config import plugins
from cnnbatch.config.plugins import load_object
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models import catalogue
from cnnbatch.models.choice import ONNX, check_classes, require_equal, says_all
from cnnbatch.models.depth import shortened
from cnnbatch.models.heads import with_new_head
from cnnbatch.models.libraries import keras_models, torchvision_models
from cnnbatch.models.network import Architecture, Network, PublishedFile, last_layer, library, seeded
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files

if TYPE_CHECKING:
    from cnnbatch.models.choice import Choice


def build_classifier(choice: Choice) -> Network:
    """Return the classifier with its weights loaded, in evaluation mode, in float32 on the CPU.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, numbers of classes that differ.
    """
    network = from_choice(choice, _classifier)
    return replace(network, preprocessing=choice.adjusted(network.preprocessing))


def _classifier(choice: Choice) -> Network:
    if plugins.is_code(choice.model):
        return external(choice, Network)
    if choice.model == ONNX:
        from cnnbatch.models.onnx import classifier

        return classifier(choice)
    found = find(choice.model)
    return _named(choice, found if choice.features is None else _cut(found, choice.features))


def _cut(whole: Architecture, block: str) -> Architecture:
    """Return an architecture up to one of its blocks, with a head on that; none is published."""

    def make(classes: int, _state: Mapping[str, Tensor], size: tuple[int, int]) -> nn.Module:
        module = whole.make(classes, {}, size).eval()
        names = tuple(map(str, range(classes)))
        how = replace(whole.preprocessing("DEFAULT"), crop=size)
        return shortened(Network(module, how, names), block, names).module

    return replace(
        whole,
        make=make,
        published=None,
        names=(),
        default=None,
        key_map=None,
        adapt=lambda state: state,
        recognised=lambda path: None,
    )


def find(model: str) -> Architecture:
    """Return the architecture that a name stands for.

    Raises:
        UserError: there is none; it proposes the nearest name.
    """
    if model in catalogue.OWN:
        return catalogue.OWN[model]()
    if model.startswith("timm/"):
        from cnnbatch.models.libraries import timm_models

        return timm_models.architecture(model.removeprefix("timm/"))
    if keras_models.is_meant(model):
        return keras_models.architecture(model)
    if model in torchvision_models.names():
        return torchvision_models.architecture(model)
    raise _no_such(model)


def _no_such(model: str) -> UserError:
    from cnnbatch.models.libraries import timm_models

    known = [
        *(ONNX, *catalogue.OWN),
        *torchvision_models.names(),
        *timm_models.names(),
        *keras_models.names(),
    ]
    return UserError(
        f"task.model: no classifier is called {model!r}{meant(model, known)}\n"
        "  expected a classifier of torchvision (resnet50), of timm (timm/NAME), of Keras (keras/NAME), one "
        f"of {', '.join(catalogue.OWN)}, onnx, or a function of yours (mypackage.module:build)"
    )


def _named(choice: Choice, found: Architecture) -> Network:
    if choice.seed is not None:
        classes, how = choice.classes or found.classes, found.preprocessing("DEFAULT")
        module = _made(choice, found, how, classes, {})
        return Network(module, how, classes, library=found.library)
    weights = choice.weights.rpartition("_Weights.")[2]  # torchvision's full name is known as well
    if found.published and weights in found.names:
        network = found.published(weights, choice.sha256)
        _check_count(choice.classes, network.module, f"the weights {choice.weights} of {found.name}")
        return replace(network, classes=choice.classes or network.classes)
    return _from_file(choice, found)


def _from_file(choice: Choice, found: Architecture) -> Network:
    """Load a state dict into the architecture; every name and every shape has to fit."""
    path = _file(choice, found)
    key_map = choice.key_map or found.key_map
    loaded = files.load(path)
    state = found.adapt(files.rename(loaded, files.read_key_map(key_map) if key_map else None))
    known = found.recognised(path)
    how = known.preprocessing if known else found.preprocessing(path.name)
    classes = choice.classes or (known.classes if known else found.classes)
    module = _made(choice, found, how, classes, state)
    name, _ = last_layer(module)
    rows = len(state[f"{name}.weight"]) if f"{name}.weight" in state else len(classes)
    require_equal(rows, classes, choice.classes, f"the file {path.name}")
    files.apply(module, state, where=str(path))
    said = "" if choice.weights == "DEFAULT" else assumed(choice, found, known, how, path.name)
    return Network(
        module,
        how,
        classes,
        licence=known.licence if known else None,
        weights=files.identity(path, loaded),
        library=found.library,
        notes=(*loaded.notes(path), *filter(None, [said])),
    )


def _file(choice: Choice, found: Architecture) -> Path:
    """Return the local file of the weights that a job names."""
    spec = choice.weights
    if spec == "DEFAULT" and found.default:
        path = files.fetch_published(*found.default, choice.storage)
        files.verify(path, choice.sha256)
        return path
    if re.fullmatch(r"\w+", spec) and not os.path.exists(spec):
        raise UserError(
            f"task.weights: {found.name} has no weights {spec!r}{meant(spec, found.names)}; expected "
            f"{', '.join(found.names or ('DEFAULT',))}, a path, a URL, package:NAME/PATH or random"
        )
    return files.fetch(spec, choice.sha256, choice.storage)


def assumed(
    choice: Choice, found: Architecture, known: PublishedFile | None, how: Preprocessing, file: str
) -> str:
    """Say which preprocessing a file of weights gets, and why; nothing where the job says all of it."""
    if says_all(choice):
        return ""
    own = f" and task.preprocessing ({', '.join(choice.preprocessing)})" if choice.preprocessing else ""
    if known is not None:
        return f"task.weights: {file} is {known.name}; its preprocessing is taken from there{own}"
    by_name = how != found.preprocessing("DEFAULT")
    whose = "the published weights of that name" if by_name else "the default weights"
    return (
        f"task.weights: {file} is no published file of {found.name}, so its preprocessing is taken from "
        f"{whose}{own}: {choice.adjusted(how).describe()}; task.preprocessing changes it"
    )


def _made(
    choice: Choice,
    found: Architecture,
    how: Preprocessing,
    classes: tuple[str, ...],
    state: Mapping[str, Tensor],
) -> nn.Module:
    if not classes:
        raise UserError(
            f"task.classes: the names of {found.name}'s classes are not known here\n"
            "  what to do: give them as a list, or as a file with one a line"
        )
    return found.make(len(classes), state, choice.adjusted(how).crop)


class _Built(Protocol):
    """What a network as one value has: `Network`, `Detector`, `FaceDetector` and the others."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def weights(self) -> str: ...
    @property
    def library(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


Built = TypeVar("Built", bound=_Built)


def from_choice(choice: Choice, make: Callable[[Choice], Built]) -> Built:
    """Return what ``make`` makes of a choice, in evaluation mode; random weights follow from their seed.

    Raises:
        UserError: the choice contradicts itself.
    """
    check_classes(choice.classes)
    files.refuse(choice.model, "task.model")
    if choice.seed is not None and choice.sha256:
        raise UserError(f"task.sha256: the weights {choice.weights} are no file that has one; leave it out")
    with seeded(choice.seed or 0):
        found = make(choice)
    found.module.eval().requires_grad_(False)
    if choice.seed is None:
        return found
    return replace(found, weights=f"random:{choice.seed}")  # type: ignore[type-var]


def external(choice: Choice, kind: type[Built]) -> Built:
    """Call a function of another package, which returns a ``kind``; a parameter ``classes`` gets the job's.

    Raises:
        UserError: it is no function, returns something else, or does not say which weights it has.
    """
    build = load_object(choice.model, "task.model")
    if not callable(build):
        raise UserError(f"task.model: expected {choice.model!r} to be a function, got {type(build).__name__}")
    wants = "classes" in inspect.signature(build).parameters
    built = build(classes=choice.classes) if wants else build()
    if not isinstance(built, kind):
        raise UserError(
            f"task.model: expected {choice.model} to return a cnnbatch.models.{kind.__name__}, "
            f"got {type(built).__name__}"
        )
    if choice.features is not None and isinstance(built, Network):
        built = shortened(built, choice.features, choice.classes or built.classes)
    given = {"classes": choice.classes} if choice.classes else {}
    own = built.library or library(choice.model.partition(":")[0].partition(".")[0])
    found: Built = replace(built, library=own, **given)
    return found if choice.seed is not None else _external_weights(choice, found)


def _external_weights(choice: Choice, built: Built) -> Built:
    if choice.weights != "DEFAULT":
        if isinstance(built, Network) and len(built.classes) != len(last_layer(built.module)[1].weight):
            with_new_head(built, built.classes)  # The file's has as many outputs as there are classes.
        path = files.fetch(choice.weights, choice.sha256, choice.storage)
        key_map = files.read_key_map(choice.key_map) if choice.key_map else None
        loaded = files.load(path)
        files.apply(built.module, loaded, key_map, str(path))
        notes = (*built.notes, *loaded.notes(path))
        if isinstance(built, Network) and not says_all(choice):
            how = choice.adjusted(built.preprocessing).describe()
            notes += (f"task.weights: {path.name} gets the preprocessing of {choice.model}: {how}",)
        return replace(built, weights=files.identity(path, loaded), notes=notes)  # type: ignore[type-var]
    if not built.weights:
        raise UserError(
            f"task.weights: {choice.model} returns a network that does not say which weights it has\n"
            f"  what to do: set {type(built).__name__}.weights there to the SHA-256 of its file, or give "
            "task.weights a path, a URL or random"
        )
    if choice.sha256 and choice.sha256.lower() != built.weights.lower():
        raise UserError(f"task.sha256: expected {choice.sha256}, {choice.model} has {built.weights}")
    return built


def _check_count(classes: tuple[str, ...] | None, module: nn.Module, what: str) -> None:
    if classes is not None:
        require_equal(len(last_layer(module)[1].weight), classes, classes, what)
