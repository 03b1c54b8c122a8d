"""From a face embedder's name and its weights' name to a `FaceEmbedder`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models import onnx
from cnnbatch.models.architectures import face_models
from cnnbatch.models.building import external, from_choice
from cnnbatch.models.choice import ONNX, Choice
from cnnbatch.models.face_embedder import FaceEmbedder, check
from cnnbatch.models.trained_face_embedder import is_trained, trained_face_embedder


def names() -> list[str]:
    """Return the names of all face embedders that have one."""
    return [*face_models.OWN]


def build_face_embedder(choice: Choice) -> FaceEmbedder:
    """Return the face embedder with its weights loaded, in evaluation mode, in float32 on the CPU.

    ``choice.preprocessing`` replaces ``mean``, ``std``, ``channels``, ``normalisation``, ``metric`` and
    ``mirror``. An ONNX file follows the convention that ``choice.adapter`` names. Where a licence does not
    allow commercial use, a note says so.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, outputs that are no vectors.
    """
    if is_trained(choice.preprocessing):
        found = from_choice(choice, trained_face_embedder)
    else:
        found = replace(from_choice(choice, _face_embedder), **_adjustments(choice))
    check(found, choice.model)
    if found.allows_commercial_use:
        return found
    licence = found.licence or "not named"
    said = f"task.embedder.weights: {choice.model} is not for commercial use: licence {licence}"
    return replace(found, notes=(*found.notes, said))


def _face_embedder(choice: Choice) -> FaceEmbedder:
    if plugins.is_code(choice.model):
        return external(choice, FaceEmbedder)
    if choice.model == ONNX:
        return onnx.face_embedder(choice)
    if choice.model in face_models.OWN:
        return face_models.OWN[choice.model](choice)
    raise UserError(
        f"task.embedder: no face embedder is called {choice.model!r}{meant(choice.model, [*names(), ONNX])}\n"
        f"  expected one of {', '.join([*names(), ONNX])}, a folder of train_faces, or a function of yours "
        "(mypackage.module:build)"
    )


_WORDS = {"channels": ("RGB", "BGR"), "normalisation": ("none", "l2"), "metric": ("euclidean", "cosine")}
_NUMBERS = ("mean", "std")
_MIRROR = "mirror"


def _adjustments(choice: Choice) -> dict[str, Any]:
    """Return the fields of an embedder that the job replaces."""
    return {name: _adjusted(name, value) for name, value in choice.preprocessing.items()}


def _adjusted(name: str, value: object) -> object:
    if name in _WORDS:
        if value in _WORDS[name]:
            return value
        expected = " or ".join(_WORDS[name])
    elif name in _NUMBERS:
        if isinstance(value, list | tuple) and len(value) == 3:
            return tuple(map(float, value))
        expected = "three numbers, one a channel"
    elif name == _MIRROR:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    else:
        known = [*_NUMBERS, *_WORDS, _MIRROR]
        raise UserError(
            f"task.embedder.{name}: there is no such field for faces{meant(name, known)}; expected one "
            f"of {', '.join(known)}"
        )
    raise UserError(f"task.embedder.{name}: expected {expected}, got {value!r}")
