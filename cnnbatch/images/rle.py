"""COCO's compressed run lengths as pixels, checked: pycocotools fills what is lacking with chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
