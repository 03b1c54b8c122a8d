"""From a detector's name and its weights' name to a `Detector`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models import onnx
from cnnbatch.models.architectures import darknet_models
from cnnbatch.models.building import external, from_choice
from cnnbatch.models.choice import ONNX, Choice
from cnnbatch.models.detector import Detector, check
from cnnbatch.models.libraries import torchvision_detectors

OWN: dict[str, Callable[[Choice], Detector]] = {"yolov3_tiny": darknet_models.yolov3_tiny}
"""This package's own detectors."""


def names() -> list[str]:
    """Return the names of all detectors that have one."""
    return [*OWN, *torchvision_detectors.names()]


def build_detector(choice: Choice, keypoints: bool = False) -> Detector:
    """Return the detector with its weights loaded, in evaluation mode, in float32 on the CPU.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, outputs that are no detections.
    """
    found = from_choice(choice, partial(_detector, keypoints=keypoints))
    found = replace(found, resizing=replace(found.resizing, **choice.preprocessing))
    check(found, choice.model)
    return found


def _detector(choice: Choice, keypoints: bool) -> Detector:
    if plugins.is_code(choice.model):
        return external(choice, Detector)
    if choice.model == ONNX:
        return onnx.detector(choice)
    if choice.model in OWN:
        return OWN[choice.model](choice)
    if choice.model in torchvision_detectors.names():
        return torchvision_detectors.detector(choice, keypoints)
    raise UserError(
        f"task.model: no detector is called {choice.model!r}{meant(choice.model, [ONNX, *names()])}\n"
        f"  expected one of {', '.join(names())}, {ONNX}, or a function of yours (mypackage.module:build)"
    )
