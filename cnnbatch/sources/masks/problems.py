"""What may be wrong with the masks of a picture, as its row of the ground truth says it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cnnbatch.truth import partly

_SHOWN = 20
_STRANGE = re.compile(r"which no class has: ([0-9, ]+)")


class Unusable(Exception):
    """Why the ground truth of a picture can't be used, in a clause."""


def left_out(problem: Unusable, answer: str = "map is") -> str:
    """Return the words for a picture whose answer, as ``objects are``, is left out for a problem."""
    return f"{problem}; its {answer} left out"


def several(paths: Sequence[str]) -> Unusable:
    """Return what to raise for a picture with more than one mask."""
    return Unusable(f"it has {len(paths)} masks, {' and '.join(paths[:_SHOWN])}")


def strange(path: str, numbers: Sequence[int]) -> Unusable:
    """Return what to raise for a mask with values that no class has."""
    more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return Unusable(f"{path} has values which no class has: {shown}{more}")


def strange_in(problem: str) -> list[int]:
    """Return the values of a problem that no class has; none of another problem."""
    found = _STRANGE.search(problem)
    return [int(number) for number in found[1].split(",") if number.strip()] if found else []


def without_class(count: int) -> str | None:
    """Return the words for so many objects that are left out, since their pixels have no class."""
    return partly(count, "objects", "no class in their pixels") if count else None
