"""COCO's compressed run lengths, read and written; reading is checked: pycocotools fills gaps with chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.images.limits import LIMITS

MOST_PIXELS = LIMITS.max_pixels
"""Of a mask that `pixels` reads, as of a picture that is decoded."""

_LONGEST = 7  # Characters of a number: 35 bits.


def pixels(mask: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Return a mask (height, width); None where its runs do not fill its size, or above `MOST_PIXELS`."""
    height, width = mask["size"]
    found = lengths_of(mask) if height * width <= MOST_PIXELS else None
    if found is None:
        return None
    inside = np.repeat(np.arange(len(found)) % 2 == 1, found)
    return inside.reshape(width, height).T


def lengths_of(mask: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """Return the run lengths of a mask; None where they are damaged or do not fill its size."""
    height, width = mask["size"]
    found = runs(mask["counts"] or "")
    if found is None or found.sum() != height * width or found.min(initial=0) < 0:
        return None
    return found


def runs(counts: str) -> NDArray[np.int64] | None:
    """Return the run lengths, outside and inside in turns (pycocotools, ``rleFrString``); None: damaged.

    Each is a number of 5 bits a character, the lowest first; from the fourth on, it is the difference to
    the one before the last.
    """
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    is_whole = not len(codes) or (len(ends) > 0 and ends[-1] == len(codes) - 1)
    if not is_whole or lengths.max(initial=0) > _LONGEST or ((codes < 0) | (codes > 0x3F)).any():
        return None
    if not len(codes):
        return codes
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values: NDArray[np.int64] = np.add.reduceat((codes & 0x1F) << 5 * place, starts)
    values -= np.where(codes[ends] & 0x10, 1 << 5 * lengths, 0)
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values


def from_edges(edges: Sequence[NDArray[np.int64]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return masks as `truth.MASK` by where each begins and ends, in turns, counted down the columns.

    ``size`` is (height, width); a mask's edges rise, and are below the number of pixels.
    """
    lengths = [np.diff(np.concatenate([[0], one, [size[0] * size[1]]])) for one in edges]
    return [{"size": list(size), "counts": counts} for counts in compressed(lengths)]


def compressed(masks: Sequence[NDArray[np.int64]]) -> list[str]:
    """Return the run lengths of masks, outside and inside in turns, as COCO writes them.

    pycocotools, ``rleToString``; all masks together, since most have few runs.
    """
    every, lengths = np.concatenate([np.zeros(0, np.int64), *masks]), [len(one) for one in masks]
    place = np.arange(len(every)) - np.repeat(np.cumsum([0, *lengths[:-1]])[: len(lengths)], lengths)
    values = every - np.where(place > 2, np.roll(every, 2), 0)
    characters = np.zeros((len(every), _LONGEST), np.uint8)  # [runs, characters]; 0 where there is none.
    left = np.arange(len(every))
    for column in range(_LONGEST):
        bits = values & 0x1F
        values >>= 5
        more = np.where(bits & 0x10, values != -1, values != 0)
        characters[left, column] = (bits | more << 5) + 48
        left, values = left[more], values[more]
    written = characters > 0
    text = characters[written].tobytes().decode("ascii")
    ends = np.concatenate([[0], np.cumsum(written.sum(axis=1))])[np.cumsum([0, *lengths])].tolist()
    return [text[begin:end] for begin, end in pairwise(ends)]
