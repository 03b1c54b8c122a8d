"""A network that gives one vector a picture: the features of a classifier, and a head on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from cnnbatch.errors import UserError
from cnnbatch.models.architectures import classical_faces
from cnnbatch.models.building import build_classifier, from_choice
from cnnbatch.models.choice import Choice
from cnnbatch.models.depth import cut_after, taps
from cnnbatch.models.embedding_head import EmbeddingHead
from cnnbatch.models.libraries import torchvision_backbones, torchvision_models
from cnnbatch.models.network import Network, library
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.models.weights import files

_INSTEAD = "name another block, or another model"


@dataclass(frozen=True)
class EmbeddingForm:
    """What an embedding is beside its network, as a job and a trained folder say it.

    ``features`` is the block that the head reads, None the last before the classifier's; ``dimensions`` how
    many numbers the head gives, None as many as the block. With ``root`` the head reads the square roots of
    the features. ``template`` names the convention by which the pictures were aligned, None: they were not.
    """

    features: str | None = None
    dimensions: int | None = None
    root: bool = False
    normalisation: Literal["none", "l2"] = "l2"
    metric: Literal["euclidean", "cosine"] = "euclidean"
    template: str | None = None


@dataclass(frozen=True)
class EmbeddingNetwork:
    """``module`` maps normalised floats (N, 3, H, W) to embeddings (N, ``form.dimensions``) float32.

    ``form.normalisation`` is what whoever runs it does with them, ``form.metric`` the distance by which two
    are then compared. The other fields are as in `Network`.
    """

    module: nn.Module
    preprocessing: Preprocessing
    form: EmbeddingForm
    licence: str | None = None
    weights: str = ""
    library: str = ""
    notes: tuple[str, ...] = ()

    @property
    def dimensions(self) -> int:
        """How many numbers an embedding has."""
        assert self.form.dimensions is not None
        return self.form.dimensions


def build_embedding(choice: Choice, form: EmbeddingForm, trained: bool, seed: int = 0) -> EmbeddingNetwork:
    """Return the network with its weights loaded, in evaluation mode, in float32 on the CPU.

    Of a ``trained`` folder the weights are those of the whole network; else they are the classifier's, and
    the head is as it begins, by ``seed``.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, a network that can't be cut.
    """

    def make(choice: Choice) -> EmbeddingNetwork:
        if choice.model in classical_faces.OWN:
            found = _computed(choice, form)
        elif not trained or choice.seed is not None:
            return _with_head(_classifier(choice), form, seed)
        else:
            without = replace(choice, weights="random", sha256=None, key_map=None)
            found = _with_head(_classifier(without), form, seed)
        return _loaded(found, choice) if trained else found

    return from_choice(replace(choice, classes=None, features=None), make)


def _computed(choice: Choice, form: EmbeddingForm) -> EmbeddingNetwork:
    """Return a network whose features are computed, and which has no weights but those of its head."""
    module, how = classical_faces.OWN[choice.model](form.dimensions)
    form = replace(form, features=None, dimensions=module.head.linear.out_features)
    how = choice.adjusted(how)
    return EmbeddingNetwork(module, how, form, weights="computed", library=library("cnnbatch"))


def _classifier(choice: Choice) -> Network:
    """Return the classifier that is cut; a file of torchvision's may lack what lies behind the cut."""
    if choice.model not in torchvision_models.names():
        return build_classifier(choice)
    network = torchvision_backbones.classifier(choice, choice.model)
    return replace(network, preprocessing=choice.adjusted(network.preprocessing))


def _with_head(network: Network, form: EmbeddingForm, seed: int) -> EmbeddingNetwork:
    network.module.eval()  # A picture goes through while blocks are looked for.
    block = form.features or _last_block(network)
    module, width = cut_after(network, block, "task.features", _INSTEAD)
    dimensions = form.dimensions or width
    if dimensions > width:
        raise UserError(
            f"task.dimensions: expected at most the {width:,} features that the block {block} gives, got "
            f"{dimensions:,}"
        )
    module.head = EmbeddingHead(width, dimensions, form.root, seed)
    return EmbeddingNetwork(
        module=module,
        preprocessing=network.preprocessing,
        form=replace(form, features=block, dimensions=dimensions),
        licence=network.licence,
        weights=network.weights,
        library=network.library,
        notes=network.notes,
    )


def _last_block(network: Network) -> str:
    if found := taps(network, 1):
        return found[-1].block
    raise UserError(
        "task.model: none of this network's blocks gives features that a head could read\n"
        f"  what to do: {_INSTEAD}"
    )


def _loaded(network: EmbeddingNetwork, choice: Choice) -> EmbeddingNetwork:
    """Return a network with the weights of a training, all of them."""
    path: Path = files.fetch(choice.weights, choice.sha256, choice.storage)
    loaded = files.load(path)
    files.apply(network.module, loaded, where=str(path))
    notes = (*network.notes, *loaded.notes(path))
    return replace(network, weights=files.identity(path, loaded), licence=None, notes=notes)


def parted(choice: Choice) -> tuple[dict[str, Any], EmbeddingForm]:
    """Return what a choice says of a classifier's preprocessing, and what of the form of embeddings."""
    known = EmbeddingForm.__dataclass_fields__
    form = {name: value for name, value in choice.preprocessing.items() if name in known}
    others = {name: value for name, value in choice.preprocessing.items() if name not in known}
    return others, EmbeddingForm(**{"features": choice.features, **form})
