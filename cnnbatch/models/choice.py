"""Which network a job asks for: its name, its weights and its classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from cnnbatch.errors import UserError
from cnnbatch.models.preprocessing import Preprocessing
from cnnbatch.storage import Storage

ONNX = "onnx"
"""The model that is an ONNX file."""


_RANDOM = re.compile(r"random(?::(\d+))?")


@dataclass(frozen=True)
class Choice:
    """Which network: what a job says about it.

    ``model`` is a torchvision name, ``timm/NAME``, ``keras/NAME``, one of `catalogue.OWN`, or the address
    of a function that returns a `Network`, ``mypackage.module:build``. ``weights`` is ``DEFAULT`` or
    another published name, a path, a URL, ``package:NAME/PATH``, or ``random[:SEED]``; ``sha256``
    is its file's. ``classes`` sizes the head; ``key_map`` is the name of a map or a JSON file;
    ``preprocessing`` replaces fields of what the weights ask for. The model ``onnx`` runs the ONNX file
    that the weights are; ``adapter`` says what that file gives. ``storage`` reads the weights' file.
    ``features`` is the block after which the network is cut, so that its head reads what that block gives;
    the weights are then of the network that is left.
    """

    model: str
    weights: str = "DEFAULT"
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    key_map: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    storage: Storage | None = None
    features: str | None = None

    @property
    def seed(self) -> int | None:
        """The seed of random weights; None where weights were asked for."""
        found = _RANDOM.fullmatch(self.weights)
        return int(found.group(1) or 0) if found else None

    def adjusted(self, how: Preprocessing) -> Preprocessing:
        """Return ``how`` with this choice's own fields."""
        return replace(how, **self.preprocessing)


def check_classes(classes: tuple[str, ...] | None) -> None:
    """Insist on names that tell classes apart."""
    if classes is not None and not classes:
        raise UserError("task.classes: expected at least one class name, got none")
    twice = [name for name, count in Counter(classes or ()).items() if count > 1]
    if twice:
        raise UserError(f"task.classes: expected names that differ, got {', '.join(twice[:8])} twice")


def require_equal(outputs: int, classes: tuple[str, ...], given: tuple[str, ...] | None, what: str) -> None:
    """Insist on as many ``classes`` as ``what`` has outputs; ``given`` are the job's own, if any."""
    if outputs != len(classes):
        whose = "task.classes" if given else "the published list of classes"
        raise UserError(
            f"task.classes: {what} has {outputs} classes, but {whose} has {len(classes)}\n"
            f"  what to do: give task.classes the {outputs} names, as a list or as a file with one a line"
        )


def says_all(choice: Choice) -> bool:
    """Say whether a job leaves nothing open of how its pictures are prepared for a classifier."""
    return {one.name for one in fields(Preprocessing)} <= choice.preprocessing.keys()
