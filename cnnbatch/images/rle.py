"""COCO's compressed run lengths, read and written; reading is checked: pycocotools fills gaps with chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 32 * 10**6
_LONGEST = 7  # Characters of a number: 35 bits.


def pixels(mask: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Return a mask (height, width); None where its runs do not fill its size, or that is too large."""
    height, width = mask["size"]
    runs = list(_runs(mask["counts"] or ""))
    if height * width > MOST_PIXELS or sum(runs) != height * width or min(runs, default=-1) < 0:
        return None
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def _runs(counts: str) -> Iterator[int]:
    """Yield the run lengths, outside and inside in turns (pycocotools, ``rleFrString``).

    Each is a number of 5 bits a character, the lowest first; from the fourth on, it is the difference to
    the one before the last.
    """
    earlier: list[int] = []
    value = place = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << 5 * place
        place += 1
        if bits & 0x20 and place < _LONGEST:
            continue
        if bits & 0x10:
            value -= 1 << 5 * place
        earlier.append(value + (earlier[-2] if len(earlier) > 2 else 0))
        yield earlier[-1]
        value = place = 0


def from_edges(edges: Sequence[NDArray[np.int64]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return masks as `truth.MASK` by where each begins and ends, in turns, counted down the columns.

    ``size`` is (height, width); a mask's edges rise, and are below the number of pixels.
    """
    runs = [np.diff(np.concatenate([[0], one, [size[0] * size[1]]])) for one in edges]
    return [{"size": list(size), "counts": counts} for counts in compressed(runs)]


def compressed(masks: Sequence[NDArray[np.int64]]) -> list[str]:
    """Return the run lengths of masks, outside and inside in turns, as COCO writes them.

    pycocotools, ``rleToString``; all masks together, since most have few runs.
    """
    runs, lengths = np.concatenate([np.zeros(0, np.int64), *masks]), [len(one) for one in masks]
    place = np.arange(len(runs)) - np.repeat(np.cumsum([0, *lengths[:-1]])[: len(lengths)], lengths)
    values = runs - np.where(place > 2, np.roll(runs, 2), 0)
    characters = np.zeros((len(runs), _LONGEST), np.uint8)  # [runs, characters]; 0 where there is none.
    left = np.arange(len(runs))
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
