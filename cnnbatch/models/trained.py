"""From the folder of a training to the network in it; which code that network is made by is not the folder's.

``task.model=FOLDER`` takes a network of a library, or of a package that is installed as a plug-in;
``task.model=mypackage.module:build task.weights=FOLDER`` names the code, and takes the rest from the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cnnbatch.config import plugins
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.models.choice import Choice
from cnnbatch.models.trained_files import (
    ABOUT,
    WEIGHTS,
    TrainedInput,
    may_be_folder,
    read_model,
    require_trained,
)
from cnnbatch.storage import Forbidden, Storage, Unreadable, join, normalize, redact

_LIBRARIES = ("timm/", "keras/")


def with_trained(choice: Choice, task: str, input: type[TrainedInput], trains: bool = False) -> Choice:
    """Return ``choice``, where its model or its weights are a trained folder with what that folder says.

    ``input`` is what the folder has to say of its network's inputs. What ``trains`` may begin with the
    weights of another architecture; whether any of them fit is for whoever loads them.

    Raises:
        UserError: the model is a place without a trained model, one for another ``task`` or architecture, or
            one that was made by code which no one has named.
    """
    storage = choice.storage or Storage()
    if (about := read_model(choice.model, storage)) is not None:
        require_trained(about, task, input, choice.model)
        model = about["architecture"]["model"]
        _require_named(model, choice.model)
        return _of_folder(replace(choice, model=model), about, choice.model)
    if _is_place(choice.model):
        raise UserError(f"task.model: {_instead(normalize(choice.model), storage)}")
    if may_be_folder(choice.weights) and (about := read_model(choice.weights, storage)) is not None:
        require_trained(about, task, input, choice.weights)
        if not trains:
            _require_same(choice.model, about["architecture"]["model"], choice.weights)
        return _of_folder(replace(choice, weights="DEFAULT"), about, choice.weights)
    return choice


def _of_folder(choice: Choice, about: Mapping[str, Any], place: str) -> Choice:
    """Return the network that a training has written into the folder at ``place``."""
    kept = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in about["preprocessing"].items()
    }
    found = replace(
        choice,
        classes=choice.classes or tuple(about["classes"]),
        preprocessing={**kept, **choice.preprocessing},
        features=about["architecture"].get("features"),
    )
    if choice.weights != "DEFAULT":
        return found
    sha256 = choice.sha256 or about["sha256"]
    return replace(found, weights=join(normalize(place), WEIGHTS), sha256=sha256)


def _require_named(model: str, place: str) -> None:
    if ":" not in model or model in plugins.installed():
        return
    raise UserError(
        f"task.model: {redact(join(normalize(place), ABOUT))} names code, {model!r}, and a data file's word "
        f"is not enough to run any\n  what to do: where you trust it, name it yourself: task.model={model} "
        f"task.weights={redact(place)}"
    )


def _require_same(model: str, trained: str, place: str) -> None:
    """Insist on the architecture that was trained; which code makes one of another package is the job's."""
    code = plugins.is_code(model) and ":" in trained
    if model.casefold() != trained.casefold() and not code:
        raise UserError(
            f"task.weights: {redact(place)} was trained from {trained!r}, expected one from {model}\n"
            f"  what to do: give task.model={trained}"
            + ("" if ":" in trained else f", or the folder alone: task.model={redact(place)}")
        )


def _is_place(model: str) -> bool:
    """Say whether a model is an address or a path rather than a name."""
    if model.lower().startswith(_LIBRARIES) or plugins.is_code(model):
        return False
    return "/" in model or "\\" in model or model.startswith((".", "~")) or os.path.isdir(model)


def _instead(place: str, storage: Storage) -> str:
    """Say what lies at a place that has no trained model, and what to do."""
    head = f"{redact(place)} holds no trained model ({ABOUT})"
    try:
        if storage.exists(join(place, "_job", "study.json")):
            return (
                f"{head}: it is a study, whose trainings are models, each by its own folder\n"
                f"  what to do: give one of them, as task.model={redact(join(place, 'trials'))}/NAME"
            )
        if storage.exists(join(place, "_job", "training", "identity.json")):
            return f"{head}: its training has not ended\n  what to do: give the training's command again"
        if storage.exists(join(place, "_job", "job.yaml")):
            return (
                f"{head}: it is the output of a job that predicts\n"
                "  what to do: give the output of a job of kind train, or the name of a model"
            )
    except (Forbidden, Unreadable, EnvironmentFault, ValueError):
        pass
    return f"{head}\n  what to do: give the output of a job of kind train, or the name of a model"
