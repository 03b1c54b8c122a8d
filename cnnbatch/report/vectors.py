"""Embeddings in two dimensions as they lay before a training and after some of its epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from cnnbatch.humanize import counted, percent
from cnnbatch.report import palette, plots
from cnnbatch.report.answers.entry import Swatch
from cnnbatch.report.numbers import share

_MARGIN = 1.04  # Around the outermost point.


class Panel(NamedTuple):
    """The vectors at one time."""

    title: str
    plot: Markup
    note: str


class VectorsByEpoch(NamedTuple):
    """Plots with one projection and one scale; ``text`` says how to read them."""

    text: str
    legend: Sequence[Swatch]
    panels: Sequence[Panel]


def vectors_by_epoch(kept: Mapping[str, Any] | None) -> VectorsByEpoch | None:
    """Return what a training has kept, see `training.vectors`, as plots; None where there is nothing."""
    if kept is None:
        return None
    names = list(dict.fromkeys(kept["classes"]))
    colours = [palette.css(colour) for colour in palette.colours(names)]
    of_class = dict(zip(names, colours, strict=True))
    largest = max(float(np.abs(one["points"]).max()) for one in kept["states"]) or 1.0
    return VectorsByEpoch(
        text=_text(len(names), kept["share"]),
        legend=[Swatch(colour, name) for name, colour in of_class.items()],
        panels=list(_panels(kept, of_class, _MARGIN * largest)),
    )


def _text(classes: int, held: float) -> str:
    return (
        f"Pictures of {classes:,} classes of the validation, which do not train, each joined to the mean of "
        "its class. All plots have one scale and one projection, the first two principal components of the "
        f"last state, which hold {percent(held)} of its variance; so the last is seen as spread as it can "
        "be, and the others from the same side."
    )


def _panels(kept: Mapping[str, Any], colours: Mapping[str, str], largest: float) -> Iterator[Panel]:
    for state in kept["states"]:
        points = np.array(state["points"]) / largest  # [N, 2]
        classes = np.array(kept["classes"])
        groups = [plots.Group(name, colour, points[classes == name]) for name, colour in colours.items()]
        epochs = state["epochs"]
        title = f"After {counted(epochs, 'epoch')}" if epochs else "Before training"
        yield Panel(
            title, plots.groups(groups), f"{kept['metric'].replace('_', ' ')} {share(state['measured'])}"
        )
