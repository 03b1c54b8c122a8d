"""From a face detector's name and its weights' name to a `FaceDetector`."""

from __future__ import annotations

from collections.abc import Callable

from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models import onnx
from cnnbatch.models.building import external, from_choice
from cnnbatch.models.choice import ONNX, Choice
from cnnbatch.models.face_detector import FaceDetector, check
from cnnbatch.models.mtcnn.published import mtcnn

OWN: dict[str, Callable[[Choice], FaceDetector]] = {"mtcnn": mtcnn}
"""This package's own face detectors."""


def names() -> list[str]:
    """Return the names of all face detectors that have one."""
    return [*OWN]


def build_face_detector(choice: Choice) -> FaceDetector:
    """Return the face detector with its weights loaded, in evaluation mode, in float32 on the CPU.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, outputs that are no faces.
    """
    found = from_choice(choice, _face_detector)
    check(found, choice.model)
    return found


def _face_detector(choice: Choice) -> FaceDetector:
    if plugins.is_code(choice.model):
        return external(choice, FaceDetector)
    if choice.model == ONNX:
        return onnx.face_detector(choice)
    if choice.model in OWN:
        return OWN[choice.model](choice)
    raise UserError(
        f"task.detector: no face detector is called {choice.model!r}{meant(choice.model, [*names(), ONNX])}\n"
        f"  expected one of {', '.join([*names(), ONNX])}, or a function of yours (mypackage.module:build)"
    )
