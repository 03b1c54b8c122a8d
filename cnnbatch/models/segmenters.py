"""From a segmenter's name and its weights' name to a `Segmenter`, never with weights not asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torchvision
from torch import Tensor

from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models import onnx
from cnnbatch.models.architectures import segmentation
from cnnbatch.models.building import external, from_choice
from cnnbatch.models.choice import ONNX, Choice
from cnnbatch.models.libraries import torchvision_models, torchvision_segmenters
from cnnbatch.models.segmenter import PublishedWeights, Segmenter, SegmenterArchitecture, check
from cnnbatch.models.weights import backbones, files


def names() -> list[str]:
    """Return the names of all segmenters that have one."""
    return [*segmentation.names(), *torchvision_segmenters.names()]


def build_segmenter(choice: Choice, new_head: bool = False) -> Segmenter:
    """Return the segmenter with its weights loaded, in evaluation mode, in float32 on the CPU.

    ``new_head`` is for a training: the weights may be those of other classes, of another segmenter with the
    same backbone, or of the classifier that the backbone is taken from, which ``DEFAULT`` then stands for
    where the segmenter itself has no published weights. What they lack, of the head alone, is random.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, outputs that are no logits a class.
    """
    found = from_choice(choice, partial(_segmenter, new_head=new_head))
    found = replace(found, resizing=replace(found.resizing, **choice.preprocessing))
    check(found, choice.model)
    return found


def find(model: str) -> SegmenterArchitecture:
    """Return the architecture that a name stands for.

    Raises:
        UserError: there is none; it proposes the nearest name.
    """
    if model in torchvision_segmenters.names():
        return torchvision_segmenters.architecture(model)
    if model in segmentation.names():
        return segmentation.architecture(model)
    known = ", ".join([ONNX, *torchvision_segmenters.names(), *segmentation.FAMILIES])
    raise UserError(
        f"task.model: no segmenter is called {model!r}{meant(model, names())}\n"
        f"  expected one of {known} (with a classifier of torchvision, as unet_resnet18), or a function of "
        "yours (mypackage.module:build)"
    )


def _segmenter(choice: Choice, new_head: bool) -> Segmenter:
    if plugins.is_code(choice.model):
        return external(choice, Segmenter)
    if choice.model == ONNX:
        return onnx.segmenter(choice)
    return _named(choice, find(choice.model), new_head)


@dataclass(frozen=True)
class _Weights:
    """Tensors by their names, with what tells them from others and what is known of them."""

    state: Mapping[str, Tensor]
    digest: str
    file: str
    published: PublishedWeights | None = None
    notes: tuple[str, ...] = ()


def _named(choice: Choice, found: SegmenterArchitecture, new_head: bool) -> Segmenter:
    weights = None if choice.seed is not None else _weights(choice, found, new_head)
    published = None if weights is None else weights.published
    classes = choice.classes or (found.classes if published is None else published.classes)
    if not classes:
        raise UserError(
            f"task.classes: the names of {found.name}'s classes are not known here\n"
            "  what to do: give them as a list, or as a file with one a line"
        )
    module = found.make(len(classes))
    if weights is not None:
        state = {name: one for name, one in weights.state.items() if not name.startswith(found.ignored)}
        load = backbones.load if new_head else files.apply
        load(module, state, where=weights.file)
        if new_head:
            backbones.load_connected(module, state, found.connected)
    return Segmenter(
        module=module,
        resizing=found.resizing if published is None else published.resizing,
        classes=classes,
        aliases={} if choice.classes else found.aliases,
        licence=None if published is None else published.licence,
        weights="" if weights is None else weights.digest,
        library=found.library,
        notes=() if weights is None else weights.notes,
    )


def _weights(choice: Choice, found: SegmenterArchitecture, new_head: bool) -> _Weights:
    """Return the weights that a choice names, published ones or those in a file."""
    name = choice.weights.rpartition("_Weights.")[2]  # torchvision's full name is known as well
    if found.load is not None and name in found.names:
        state, path, published = found.load(name, choice.sha256)
        return _Weights(state, files.digest(path), path.name, published)
    if name == "DEFAULT" and new_head:
        known = torchvision.models.get_model_weights(found.classifier)
        whole, path = torchvision_models.load_published(found.classifier, known["DEFAULT"], choice.sha256)
        return _Weights(whole.state_dict(), files.digest(path), path.name)
    if re.fullmatch(r"\w+", choice.weights) and not os.path.exists(choice.weights):
        raise _no_such_weights(choice.weights, found)
    return _from_file(choice, found)


def _from_file(choice: Choice, found: SegmenterArchitecture) -> _Weights:
    path = files.fetch(choice.weights, choice.sha256, choice.storage)
    loaded, published = files.load(path), found.recognised(path)
    state = files.rename(loaded, files.read_key_map(choice.key_map) if choice.key_map else None)
    said = () if published is None else (f"task.weights: {path.name} is {published.name}",)
    return _Weights(state, files.identity(path, loaded), path.name, published, (*loaded.notes(path), *said))


def _no_such_weights(weights: str, found: SegmenterArchitecture) -> UserError:
    if weights == "DEFAULT":
        return UserError(
            f"task.weights: {found.name} has no published weights\n"
            "  what to do: give the folder of a training (task.model=FOLDER), a file of weights, or random"
        )
    return UserError(
        f"task.weights: {found.name} has no weights {weights!r}{meant(weights, found.names)}; expected "
        f"{', '.join((*found.names, 'a path'))}, a URL, package:NAME/PATH or random"
    )
