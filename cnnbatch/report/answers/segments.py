"""Segments of a panoptic picture in reports: where those that were predicted are not the true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.humanize import percent
from cnnbatch.images import rle
from cnnbatch.metrics import panoptic
from cnnbatch.metrics.segments import Segments, encoded, match
from cnnbatch.report import palette
from cnnbatch.report.answers.entry import DIFFERENCE, MoreView, Swatch
from cnnbatch.report.layers import IN_PART, LEFT_OUT, WRONG, difference

Objects = Sequence[Mapping[str, Any]]

_WRONG = Swatch(palette.css(WRONG), "wrong class")
_UNMATCHED = Swatch(palette.css(IN_PART), "right class, but the segments do not match (IoU of 0.5 or less)")
_LEFT_OUT = Swatch(palette.css(LEFT_OUT), "not evaluated")
_DIFFERENT = Swatch(palette.css(WRONG), "another class")
_NOTHING = -1


def are_segments(*some: Objects) -> bool:
    """Say whether objects are segments: some of them say whether they are things."""
    return any(one.get("is_thing") is not None for objects in some for one in objects)


def quality(image: Image.Image, said: Objects, true: Objects) -> MoreView | None:
    """Return where a pixel's class or segment is wrong; None where the masks differ in size, or are none.

    Segments match as for the panoptic quality (`metrics.segments.match`), which the text has.
    """
    said, true = _readable(said), _readable(true)
    if len({tuple(one["mask"]["size"]) for one in (*said, *true)}) != 1:
        return None
    numbers = {
        name: place for place, name in enumerate(dict.fromkeys(one["label"] for one in (*said, *true)))
    }
    found, known = _segments(said), _segments(true)
    here, there = _places(said, image), _places(true, image)
    classes = _classes(said, numbers)[here], _classes(true, numbers)[there]
    partner = np.full(len(true) + 1, _NOTHING)  # The last is of no segment.
    pairs = match(found, known, numbers).pairs
    partner[pairs[:, 0]] = pairs[:, 1]
    crowd = np.array([*(bool(one.get("crowd")) for one in true), True])
    drawn = difference(
        image,
        wrong=classes[0] != classes[1],
        in_part=(classes[0] == classes[1]) & (partner[there] != here),
        left_out=crowd[there],
    )
    return MoreView(DIFFERENCE, drawn, _words(found, known), (_WRONG, _UNMATCHED, _LEFT_OUT))


def disagreement(image: Image.Image, first: Objects, second: Objects) -> MoreView | None:
    """Return where the classes of two predictions differ; None as for `quality`."""
    first, second = _readable(first), _readable(second)
    if len({tuple(one["mask"]["size"]) for one in (*first, *second)}) != 1:
        return None
    names = dict.fromkeys(one["label"] for one in (*first, *second))
    numbers = {name: place for place, name in enumerate(names)}
    one, other = (_classes(each, numbers)[_places(each, image)] for each in (first, second))
    text = f"{percent(float((one == other).mean()))} of the pixels have the same class"
    return MoreView(DIFFERENCE, difference(image, one != other), text, (_DIFFERENT,))


def _readable(objects: Objects) -> Objects:
    """Return the objects whose masks can be read."""
    return [one for one in objects if one.get("mask") and rle.lengths_of(one["mask"]) is not None]


def _segments(objects: Objects) -> Segments:
    masks = [encoded(one["mask"]) for one in objects]
    things, crowd = [one.get("is_thing") for one in objects], [bool(one.get("crowd")) for one in objects]
    return Segments([one["label"] for one in objects], masks, things, crowd)


def _classes(objects: Objects, numbers: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the class of each object, and that of no object last."""
    return np.array([*(numbers[one["label"]] for one in objects), _NOTHING])


def _places(objects: Objects, image: Image.Image) -> NDArray[np.int64]:
    """Return which object each pixel of a small picture is in, the first of several; -1 in none."""
    found = np.full((image.height, image.width), _NOTHING)
    for place, one in enumerate(objects):
        inside = rle.pixels(one["mask"])
        if inside is not None:
            small = Image.fromarray(inside).resize(image.size, Image.Resampling.NEAREST)
            found[np.asarray(small) & (found == _NOTHING)] = place
    return found


def _words(said: Segments, true: Segments) -> str:
    """Return ``PQ 0.61, 7 of 12 segments found``."""
    (row,) = panoptic.image_rows(panoptic.count([""], [said], [true])).to_pylist()
    quality = "" if row["PQ"] is None else f"PQ {row['PQ']:.2f}, "
    return f"{quality}{row['segments_found']} of {row['segments']} segments found"
