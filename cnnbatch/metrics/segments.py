"""How the segments of two panoptic pictures lie on each other, counted on run lengths.

Areas and overlaps are pycocotools', so that no mask is ever there pixel by pixel, unless some overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from cnnbatch.images.rle import pixels

Rle = Mapping[str, Any]
"""A mask as pycocotools has it: ``size`` is (height, width), ``counts`` are bytes."""


def encoded(mask: Mapping[str, Any]) -> Rle:
    """Return a mask as tables have it, whose counts are text, as pycocotools takes it."""
    return {"size": mask["size"], "counts": mask["counts"].encode()}


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of an image, which do not overlap; those in ``crowd`` are groups of their class.

    ``things`` says of each whether its class is of things, else of stuff; None where that is not known.
    """

    labels: Sequence[str]
    masks: Sequence[Rle]
    things: Sequence[bool | None]
    crowd: Sequence[bool] = ()


@dataclass(frozen=True, slots=True)
class Matched:
    """The matches of an image: the classes of the hits with their IoU, and of what is wrong and missed.

    ``pairs`` (hits, 2) are the places of each hit's true segment and of its prediction. ``largest`` names the
    class of the largest segment that was missed; ``empty`` predictions have no pixel.
    """

    hits: NDArray[np.int64]
    iou: NDArray[np.float64]
    pairs: NDArray[np.int64]
    wrong: NDArray[np.int64]
    missed: NDArray[np.int64]
    largest: str | None
    empty: int


def match(said: Segments, true: Segments, numbers: Mapping[str, int]) -> Matched:
    """Match the segments of an image as ``pq_compute`` of COCO's panopticapi does.

    A pair is matched where it has one class and an IoU above 0.5, which then no other pair of the two has
    (Kirillov et al., theorem 1). Void pixels of the truth, which are in none of its segments, are left out of
    the union; a crowd matches nothing and is not missed; and a segment of which more than half lies in void
    or in the crowd of its class is no false positive. Of several crowds of a class the last counts.
    """
    true_area, said_area, shared = overlaps(true.masks, said.masks)
    void = said_area - shared.sum(axis=0)
    union = true_area[:, None] + said_area - shared - void
    said_class, true_class = (
        np.array([numbers[one] for one in each.labels], np.int64) for each in (said, true)
    )
    crowd = np.array(true.crowd, np.bool_) if true.crowd else np.zeros(len(true_class), np.bool_)
    alike = true_class[:, None] == said_class
    hit = alike & ~crowd[:, None] & (2 * shared > union)

    last = list({true_class[place]: place for place in np.flatnonzero(crowd)}.values())
    ignored = void + (shared * alike)[last].sum(axis=0)
    wrong = (2 * ignored <= said_area) & ~hit.any(axis=0) & (said_area > 0)
    missed = ~crowd & ~hit.any(axis=1)
    pairs = np.argwhere(hit)
    largest = max(np.flatnonzero(missed).tolist(), key=lambda place: int(true_area[place]), default=None)
    return Matched(
        hits=true_class[pairs[:, 0]],
        iou=shared[hit] / union[hit],
        pairs=pairs,
        wrong=said_class[wrong],
        missed=true_class[missed],
        largest=None if largest is None else true.labels[largest],
        empty=int((said_area == 0).sum()),
    )


class Overlaps(NamedTuple):
    """The areas of some segments (T,) and of others (S,), and what each two of them share, (T, S)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    shared: NDArray[np.int64]


def overlaps(first: Sequence[Rle], second: Sequence[Rle]) -> Overlaps:
    """Return how the segments of a picture lie on those of another one; all have one size."""
    one, other = _disjoint(first), _disjoint(second)
    areas = _areas(one), _areas(other)
    return Overlaps(*areas, _shared(one, other, areas[1]))


def _disjoint(masks: Sequence[Rle]) -> list[Rle]:
    """Return the masks without the pixels that earlier ones have; as they are where none overlap."""
    if len(masks) < 2 or _areas(masks).sum() == int(rle.area(rle.merge(list(masks)))):
        return list(masks)
    taken = np.zeros(masks[0]["size"], np.bool_, order="F")
    found = []
    for mask in masks:
        own = pixels({"size": mask["size"], "counts": mask["counts"].decode()})
        if own is not None:  # Else its runs do not fill it, and nobody knows what they mean.
            mask = rle.encode(np.asfortranarray(own & ~taken, np.uint8))
            taken |= own
        found.append(mask)
    return found


def _areas(masks: Sequence[Rle]) -> NDArray[np.int64]:
    """Ask pycocotools for some at a time: with numpy 2, ``mask.area`` fails for a list of more than 255."""
    some = [rle.area(list(masks[start : start + 255])) for start in range(0, len(masks), 255)]
    areas: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *some], dtype=np.int64)
    return areas


def _shared(true: Sequence[Rle], said: Sequence[Rle], said_area: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of pixels that each two have in common, (T, S).

    pycocotools divides it by the area of the prediction where the truth is a crowd, so all of it are.
    """
    if not true or not said:
        return np.zeros((len(true), len(said)), np.int64)
    shares = rle.iou(list(said), list(true), np.ones(len(true), np.uint8))  # [S, T]
    shared: NDArray[np.int64] = np.rint(shares.T * said_area).astype(np.int64)
    return shared
