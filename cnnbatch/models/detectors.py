"""From a detector's name and its weights' name to a `Detector`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
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
from cnnbatch.models.network import seeded
from cnnbatch.types import Head

OWN: dict[str, Callable[[Choice], Detector]] = {"yolov3_tiny": darknet_models.yolov3_tiny}
"""This package's own detectors."""


def names() -> list[str]:
    """Return the names of all detectors that have one."""
    return [*OWN, *torchvision_detectors.names()]


def build_detector(
    choice: Choice,
    heads: Collection[Head] = (),
    points: int | None = None,
    head_seed: int | None = None,
) -> Detector:
    """Return the detector with its weights loaded, in evaluation mode, in float32 on the CPU.

    It gives masks and keypoints where ``heads`` names them; ``points`` is the number of keypoints where no
    weights say it. ``head_seed`` is for a training: the weights may be those of the classifier that the
    backbone is taken from, which ``DEFAULT`` stands for where the detector itself has no published weights,
    and what they lack is random from this seed.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, outputs that are no detections.
    """
    make = partial(_detector, heads=frozenset(heads), points=points, head_seed=head_seed)
    found = from_choice(choice, make)
    found = replace(found, resizing=replace(found.resizing, **choice.preprocessing))
    check(found, choice.model, heads)
    return found


def _detector(choice: Choice, heads: frozenset[Head], points: int | None, head_seed: int | None) -> Detector:
    if plugins.is_code(choice.model):
        return external(choice, Detector)
    if torchvision_detectors.is_known(choice.model):
        if lacking := [head for head in heads if not torchvision_detectors.gives(choice.model, head)]:
            raise _lacks(choice.model, lacking[0])
        with nullcontext() if head_seed is None else seeded(head_seed):
            return torchvision_detectors.detector(choice, heads, points, new_head=head_seed is not None)
    if heads:
        raise _no_such(choice.model, torchvision_detectors.trainable(min(heads)), min(heads))
    if choice.model == ONNX:
        return onnx.detector(choice)
    if choice.model in OWN:
        return OWN[choice.model](choice)
    raise _no_such(choice.model, [*names(), ONNX])


def _lacks(model: str, head: Head) -> UserError:
    known = torchvision_detectors.trainable(head)
    return UserError(
        f"task.model: {model} gives no {head}\n"
        f"  expected one of {', '.join(known)}, {torchvision_detectors.other_names(head)}"
    )


def _no_such(model: str, known: Sequence[str], head: Head | None = None) -> UserError:
    return UserError(
        f"task.model: no detector{f' of {head}' if head else ''} is called {model!r}{meant(model, known)}\n"
        f"  expected one of {', '.join(known)}, {torchvision_detectors.other_names(head)}, or a function of "
        "yours (mypackage.module:build)"
    )
