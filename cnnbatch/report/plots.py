"""Numbers to shapes: a page's plots as small inline SVG, whose words stay HTML and so stay legible.

An SVG here is stretched to the width it gets, so it holds no text; the page writes the axes
around it. That is less than a plotting library can, and needs none to open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

BINS = 120
WIDTH, HEIGHT = 600, 160
PAUSE_S = 60.0
LEAST_SPAN_S = 1e-3
_STEPS = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10, 20)


@dataclass(frozen=True, slots=True)
class PartSpan:
    """A part's work: ``rows`` images between two moments."""

    started: datetime
    finished: datetime
    rows: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Images a second over the time at work, without the pauses between runs.

    ``rates`` are images a second in `BINS` equal bins of ``seconds``; ``pauses`` are the places
    of the cut-out pauses, as fractions of ``seconds``.
    """

    seconds: float
    images: int
    rates: np.ndarray
    pauses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Images a second over the whole."""
        return self.images / self.seconds


def timeline(spans: Sequence[PartSpan]) -> Timeline | None:
    """Return when the images were done, as if each part had gone on evenly; None without spans."""
    if not spans:
        return None
    starts = np.array([span.started.timestamp() for span in spans])
    ends = np.maximum(np.array([span.finished.timestamp() for span in spans]), starts + LEAST_SPAN_S)
    busy = _stretches(starts, ends)
    seconds = sum(end - start for start, end in busy)
    edges = np.linspace(0, seconds, BINS + 1)
    done = np.zeros(BINS + 1)
    for start, end, span in zip(_at_work(starts, busy), _at_work(ends, busy), spans, strict=True):
        done += span.rows * np.clip((edges - start) / (end - start), 0, 1)
    pauses = np.cumsum([end - start for start, end in busy])[:-1] / seconds
    return Timeline(
        seconds=seconds,
        images=sum(span.rows for span in spans),
        rates=np.diff(done) / np.diff(edges),
        pauses=tuple(pauses.tolist()),
    )


def area(
    values: Sequence[float], top: float, marks: Sequence[float] = (), level: float | None = None
) -> Markup:
    """Draw ``values`` as steps over a filled area; ``top`` is the value at the upper edge.

    ``marks`` are vertical lines at fractions of the width, ``level`` a horizontal one.
    """
    step = WIDTH / len(values)
    heights = [HEIGHT * (1 - value / top) for value in values]
    line = " ".join(f"H{step * n:.1f} V{y:.1f}" for n, y in enumerate(heights))
    path = f"M0 {heights[0]:.1f} {line} H{WIDTH}"
    extra = [f'<path class="mark" d="M{WIDTH * mark:.1f} 0 V{HEIGHT}"/>' for mark in marks]
    if level is not None:
        extra.append(f'<path class="level" d="M0 {HEIGHT * (1 - level / top):.1f} H{WIDTH}"/>')
    return _svg(
        f'<path class="fill" d="{path} V{HEIGHT} H0 Z"/><path class="line" d="{path}"/>{"".join(extra)}'
    )


def columns(counts: Sequence[int]) -> Markup:
    """Draw ``counts`` as columns side by side, the largest as high as the plot."""
    step, top = WIDTH / len(counts), max(max(counts), 1)
    bars = [
        f'<rect x="{step * n + 1:.1f}" y="{HEIGHT * (1 - count / top):.1f}" width="{step - 2:.1f}"'
        f' height="{HEIGHT * count / top:.1f}"/>'
        for n, count in enumerate(counts)
        if count
    ]
    return _svg("".join(bars))


class Dot(NamedTuple):
    """A point from 0 to 1 each way, and what it says when one points at it."""

    x: float
    y: float
    title: str


def curves(lines: Sequence[Sequence[tuple[float, float]]], dots: Sequence[Dot] = ()) -> Markup:
    """Draw lines through points from 0 to 1 each way, and dots over them.

    A dot is a line of no length with round ends, which no stretching makes an ellipse.
    """
    drawn = [
        f'<path class="line-{number}" d="M{" L".join(_at(*point) for point in line)}"/>'
        for number, line in enumerate(lines)
        if line
    ]
    return _svg("".join([*drawn, *map(_dot, dots)]))


class Shape(NamedTuple):
    """A line, or the outline of an area, through points from 0 to 1 each way; ``kind`` is its CSS class."""

    kind: str
    points: Sequence[tuple[float, float]]


def shapes(
    areas: Sequence[Shape], lines: Sequence[Shape], dots: Sequence[Dot] = (), marks: Sequence[float] = ()
) -> Markup:
    """Draw areas, lines over them and dots over these; ``marks`` are vertical lines at parts of the width."""
    drawn = [f'<path class="area {one.kind}" d="M{_path(one)} Z"/>' for one in areas]
    drawn += [f'<path class="mark" d="M{WIDTH * mark:.1f} 0 V{HEIGHT}"/>' for mark in marks]
    drawn += [f'<path class="{one.kind}" d="M{_path(one)}"/>' for one in lines if one.points]
    return _svg("".join([*drawn, *map(_dot, dots)]))


class Group(NamedTuple):
    """Points (N, 2) of one ``colour``, from -1 to 1 each way."""

    title: str
    colour: str
    points: np.ndarray


def groups(some: Sequence[Group]) -> Markup:
    """Draw groups of points in a square that keeps its form, each point joined to its group's mean."""
    return Markup(  # noqa: S704 - built from numbers and escaped titles and colours
        '<svg viewBox="-1 -1 2 2" aria-hidden="true">' + "".join(map(_group, some)) + "</svg>"
    )


def _group(group: Group) -> str:
    x, y = group.points.mean(0)
    joined = " ".join(f"M{x:.4f} {-y:.4f} L{a:.4f} {-b:.4f}" for a, b in group.points)
    dots = " ".join(f"M{a:.4f} {-b:.4f} h0" for a, b in group.points)
    return (
        f'<g stroke="{escape(group.colour)}"><title>{escape(group.title)}</title>'
        f'<path class="join" d="{joined}"/><path class="point" d="{dots}"/></g>'
    )


def shares(heights: Sequence[float | None], titles: Sequence[str], diagonal: bool = True) -> Markup:
    """Draw shares from 0 to 1 as columns without gaps, against the diagonal where that is wanted."""
    step = WIDTH / len(heights)
    drawn = [
        f'<rect x="{step * n + 0.5:.1f}" y="{HEIGHT * (1 - height):.1f}" width="{step - 1:.1f}"'
        f' height="{HEIGHT * height:.1f}"><title>{escape(title)}</title></rect>'
        for n, (height, title) in enumerate(zip(heights, titles, strict=True))
        if height is not None
    ]
    level = [f'<path class="level" d="M0 {HEIGHT} L{WIDTH} 0"/>'] if diagonal else []
    return _svg("".join([*drawn, *level]))


def nice_top(value: float) -> float:
    """Return the least of `_STEPS` times a power of ten that is not below ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * (1 - 1e-9))


def _dot(dot: Dot) -> str:
    return f'<path class="dot" d="M{_at(dot.x, dot.y)} h0"><title>{escape(dot.title)}</title></path>'


def _path(shape: Shape) -> str:
    return " L".join(_at(x, y) for x, y in shape.points)


def _at(x: float, y: float) -> str:
    return f"{WIDTH * x:.1f} {HEIGHT * (1 - y):.1f}"


def _svg(inside: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
    return Markup(f"{head}{inside}</svg>")  # noqa: S704 - built from numbers and escaped titles


def _stretches(starts: np.ndarray, ends: np.ndarray) -> list[tuple[float, float]]:
    """Join spans into stretches of work that are more than `PAUSE_S` apart."""
    order = np.argsort(starts)
    latest = np.maximum.accumulate(ends[order])
    breaks = np.flatnonzero(starts[order][1:] > latest[:-1] + PAUSE_S) + 1
    edges = [0, *breaks.tolist(), len(starts)]
    return [(float(starts[order][first]), float(latest[last - 1])) for first, last in pairwise(edges)]


def _at_work(moments: np.ndarray, busy: Sequence[tuple[float, float]]) -> np.ndarray:
    """Turn moments of the clock into seconds of work since the first stretch began."""
    worked = np.zeros(len(moments))
    for start, end in busy:
        worked += np.clip(moments, start, end) - start
    return worked
