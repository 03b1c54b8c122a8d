"""The segmenter that a training begins with: what of its weights it keeps, and the head that it gets.

Which tensors have an output for each class is found by building the architecture for one class more: these
are the ones of another shape. So it holds for every architecture, also one of another package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cnnbatch.config.train import Strategy
from cnnbatch.errors import UserError
from cnnbatch.models import Choice, Segmenter
from cnnbatch.models.choice import ONNX
from cnnbatch.models.segmenters import build_segmenter
from cnnbatch.truth.classes import named_alike


def segmenter_to_train(choice: Choice, strategy: Strategy, classes: tuple[str, ...], seed: int) -> Segmenter:
    """Return the segmenter of ``classes`` that training begins with.

    Its weights are random with ``scratch``. With ``as_is`` it has the outputs of these classes, which have to
    be among its own. Otherwise it keeps all that its weights have; outputs for classes are new unless the
    weights are those of a training with the same classes, of this architecture or of another one with the
    same backbone.

    Raises:
        UserError: it can't be trained, or does not know the classes that it has to.
    """
    if choice.model == ONNX:
        raise UserError(
            "task.model: an ONNX file does not train\n"
            "  what to do: take a segmenter by its name (cnnbatch models), or the folder of a training"
        )
    fresh = _random(choice, classes, seed)
    if strategy == "scratch":
        return build_segmenter(fresh)
    if strategy == "as_is":
        return _with_own_outputs(build_segmenter(choice), choice, fresh)
    begun = build_segmenter(replace(choice, classes=classes), new_head=True)
    if choice.classes != classes:
        state = build_segmenter(fresh).module.state_dict()
        _load(begun, {name: state[name] for name in _axes(begun, choice)})
    return replace(begun, classes=classes, ids=(), aliases={})


def require_weights(choice: Choice) -> None:
    """Have the weights on this machine that a training of some classes would begin with.

    Raises:
        UserError: there are none of that name, or they do not fit.
        EnvironmentFault: they are not here, and could not be fetched.
    """
    build_segmenter(replace(choice, classes=choice.classes or ("a", "b")), new_head=True)


def _random(choice: Choice, classes: tuple[str, ...], seed: int = 0) -> Choice:
    return replace(choice, weights=f"random:{seed}", sha256=None, key_map=None, classes=classes)


def _axes(segmenter: Segmenter, choice: Choice) -> dict[str, list[int]]:
    """Return by name the tensors that have an output or input for each class, and their axes of classes."""
    more = (*(f"class {place}" for place in range(len(segmenter.classes) + 1)),)
    others = build_segmenter(_random(choice, more)).module.state_dict()
    found = {}
    for name, tensor in segmenter.module.state_dict().items():
        axes = [axis for axis, side in enumerate(tensor.shape) if others[name].shape[axis] != side]
        if axes:
            found[name] = axes
    return found


def _load(segmenter: Segmenter, state: Mapping[str, Tensor]) -> None:
    segmenter.module.load_state_dict({**segmenter.module.state_dict(), **state})


def _with_own_outputs(trained: Segmenter, choice: Choice, fresh: Choice) -> Segmenter:
    """Return a trained segmenter with the outputs of some of its classes alone, those of ``fresh``."""
    classes = fresh.classes or ()
    places = torch.tensor(_places(trained, classes, choice.model))
    state = trained.module.state_dict()
    for name, axes in _axes(trained, choice).items():
        for axis in axes:
            state[name] = state[name].index_select(axis, places)
    found = build_segmenter(fresh)
    _load(found, state)
    return replace(trained, module=found.module, classes=classes, ids=(), aliases={})


def _places(trained: Segmenter, classes: Sequence[str], model: str) -> list[int]:
    """Return where the classes are among those of a trained segmenter."""
    aliases = {alias: name for name, alias in trained.aliases.items()}
    names = named_alike(classes, [*trained.classes, *aliases])
    if unknown := [name for name in classes if name not in names]:
        raise UserError(
            f"train.strategy: as_is needs a segmenter that knows all classes; {model} does not know "
            f"{', '.join(unknown[:8])}\n  what to do: take another strategy, or auto"
        )
    return [trained.classes.index(aliases.get(names[name], names[name])) for name in classes]
