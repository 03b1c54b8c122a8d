"""What the pages share: their templates, and the values that bars and charts are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from cnnbatch import terminal
from cnnbatch.humanize import clipped, decimal, duration, moment, number, percent


class Bar(NamedTuple):
    """A named amount; ``share`` is of the largest or of the whole, 0 to 1."""

    name: str
    amount: float
    share: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot and the words on its axes, from the lowest and the left on.

    ``legend`` says by the class of a line or dot what it stands for.
    """

    plot: Markup
    up: Sequence[str]
    across: Sequence[str]
    summary: str
    legend: Sequence[tuple[str, str]] = ()


class _Inert(jinja2.Template):
    """Fills a page in which no name steers: not the browser, since all is escaped, nor a line's direction."""

    def render(self, *values: Any, **named: Any) -> str:
        return terminal.lines(super().render(*values, **named))


_HERE = Path(__file__).parent
_STUDY = _HERE.parent / "training" / "study"
_INDEX = _HERE.parent / "index"
_FOLDERS = (_HERE, _HERE.parent / "evaluation" / "comparison", _INDEX, _STUDY, _STUDY / "predictions")
"""Where templates lie: each beside the code that fills it."""


def template(name: str) -> jinja2.Template:
    """Return a template, with the filters that put numbers into words."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    """Return what the templates share; kept, since compiling them takes longer than filling them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDERS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.template_class = _Inert
    environment.filters |= {
        "number": number,
        "decimal": decimal,
        "duration": duration,
        "percent": percent,
        "moment": moment,
        "bounded": _bounded,
        "clipped": clipped,
    }
    return environment


def _bounded(percentage: float) -> float:
    return min(max(percentage, 0.0), 100.0)
