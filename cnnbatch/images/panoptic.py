"""Masks of things and a map of classes as segments that do not overlap: a picture seen whole.

The rule is that of Kirillov, He, Girshick, Rother, Dollár: Panoptic segmentation, 2019, for what two networks
find, as detectron2 has it. All is counted down the columns, as run lengths are, so that a mask costs no more
than its own columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.images import rle

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rule:
    """When a mask or a class becomes a segment; the defaults are detectron2's.

    A mask of which a greater part than ``overlap`` is taken already is left out, as is one with a score below
    ``score``, and a class of which fewer than ``stuff_area`` pixels are left.
    """

    overlap: float = 0.5
    score: float = 0.5
    stuff_area: int = 4096


@dataclass(frozen=True, slots=True)
class Thing:
    """A mask, `truth.MASK`, with its score."""

    mask: Mapping[str, Any]
    score: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a picture: its mask (`truth.MASK`), the box around it, and what it was cut from.

    ``number`` is the place of a thing's mask among the masks; of stuff, it is the class.
    """

    mask: dict[str, Any]
    box_xyxy: tuple[int, int, int, int]
    is_thing: bool
    number: int


def segments(
    things: Sequence[Thing], classes: NDArray[Any], stuff: Collection[int], rule: Rule
) -> list[Segment]:
    """Return the segments of a picture, things first, the surest before others.

    ``classes`` (H, W) has a number for every pixel, of which those in ``stuff`` become segments.

    Raises:
        ValueError: a mask is damaged, or of another size than ``classes``.
    """
    size = height, width = classes.shape[0], classes.shape[1]
    taken = np.zeros(height * width, np.bool_)
    found = [(edges, True, number) for number, edges in _of_things(things, size, taken, rule)]
    found += [(edges, False, number) for number, edges in _of_stuff(classes, stuff, taken, rule)]
    masks = rle.from_edges([edges[edges < taken.size] for edges, *_ in found], size)
    return [
        Segment(mask, _box(edges, height), is_thing, number)
        for mask, (edges, is_thing, number) in zip(masks, found, strict=True)
    ]


def _of_things(
    things: Sequence[Thing], size: tuple[int, int], taken: NDArray[np.bool_], rule: Rule
) -> Iterator[tuple[int, Integers]]:
    """Yield what is left of each mask, by its edges, and take it."""
    for number in np.argsort([-one.score for one in things], kind="stable").tolist():
        if things[number].score < rule.score:
            return
        lengths = _lengths(things[number].mask, size)
        edges, area = np.cumsum(lengths[:-1]), int(lengths[1::2].sum())
        if not area:
            continue
        begin, inside = int(edges[0]), np.repeat(np.arange(len(lengths) - 1) % 2 == 0, lengths[1:])
        taken_here = taken[begin : begin + len(inside)]  # A view: what is added to it is taken.
        left = inside & ~taken_here
        if (area - int(left.sum())) / area > rule.overlap or not left.any():
            continue
        taken_here |= left
        yield number, begin + _edges(left)


def _of_stuff(
    classes: NDArray[Any], stuff: Collection[int], taken: NDArray[np.bool_], rule: Rule
) -> Iterator[tuple[int, Integers]]:
    """Yield what is left of each class, by its edges; classes do not overlap."""
    columns = classes.T.ravel()
    for number in np.unique(columns).tolist():
        if number not in stuff:
            continue
        inside = (columns == number) & ~taken
        if inside.sum() >= max(1, rule.stuff_area):
            yield number, _edges(inside)


def _lengths(mask: Mapping[str, Any], size: tuple[int, int]) -> Integers:
    if tuple(mask["size"]) != size:
        raise ValueError(f"a mask was made for {tuple(mask['size'])} (height, width), the map has {size}")
    lengths = rle.lengths_of(mask)
    if lengths is None:
        raise ValueError("the run lengths of a mask are damaged: they do not fill its size")
    return lengths


def _edges(inside: NDArray[np.bool_]) -> Integers:
    return np.flatnonzero(np.diff(inside, prepend=False, append=False))


def _box(edges: Integers, height: int) -> tuple[int, int, int, int]:
    """Return the box (x1, y1, x2, y2) around what lies between edges, in pairs."""
    first, last = edges[::2], edges[1::2] - 1
    (left, top), (right, bottom) = (np.divmod(ends, height) for ends in (first, last))
    rows = (0, height) if (left != right).any() else (int(top.min()), int(bottom.max()) + 1)
    return int(left[0]), rows[0], int(right[-1]) + 1, rows[1]
