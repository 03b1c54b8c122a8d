"""From a segmenter's name and its weights' name to a `Segmenter`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.models.building import external, from_choice
from cnnbatch.models.choice import Choice
from cnnbatch.models.segmenter import Segmenter, check

OWN: dict[str, Callable[[Choice], Segmenter]] = {}
"""This package's own segmenters."""


def names() -> list[str]:
    """Return the names of all segmenters that have one."""
    return [*OWN]


def build_segmenter(choice: Choice) -> Segmenter:
    """Return the segmenter with its weights loaded, in evaluation mode, in float32 on the CPU.

    Raises:
        UserError: unknown names, weights that don't fit or can't be had, outputs that are no logits a class.
    """
    found = from_choice(choice, _segmenter)
    found = replace(found, resizing=replace(found.resizing, **choice.preprocessing))
    check(found, choice.model)
    return found


def _segmenter(choice: Choice) -> Segmenter:
    if plugins.is_code(choice.model):
        return external(choice, Segmenter)
    if choice.model in OWN:
        return OWN[choice.model](choice)
    raise UserError(
        f"task.model: no segmenter is called {choice.model!r}{meant(choice.model, names())}\n"
        f"  expected one of {', '.join(names())}, or a function of yours (mypackage.module:build)"
    )
