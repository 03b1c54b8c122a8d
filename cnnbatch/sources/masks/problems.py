"""What may be wrong with the masks of a picture, as its row of the ground truth says it, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cnnbatch.truth.problems import has_other_size, partly

_SHOWN = 20
_STRANGE = re.compile(r"which no class has: ([0-9, ]+)")
_REMEDIES = {
    "not kept exactly": "write the masks as PNG files, from what they were made of: the values have changed",
    "of the same values": "write the masks as PNG files",
    "got colours": "write the number of each pixel's class, not its colour (a palette may have that)",
    "no whole PNG file": "copy the damaged files again",
    " masks, ": "keep one mask an image, or say what it is called, as in input.truth='masks/{name}_mask.png'",
}
"""What to do, by words of a problem."""


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
    return Unusable(f"its mask {path} has values which no class has: {shown}{more}")


def remedies(found: Sequence[str]) -> Iterator[str]:
    """Yield what to do about some problems, each once."""
    values = sorted({value for problem in found for value in _strange_in(problem)})
    if values:
        yield (
            f"leave the pixels of these values out (input.ignore={values}), make them others "
            "(input.relabel), or name each in a line of classes.txt"
        )
    if any(map(has_other_size, found)):
        yield "give each image a mask of its size; to resize one, take the nearest value, do not interpolate"
    for words, remedy in _REMEDIES.items():
        if any(words in problem for problem in found):
            yield remedy


def _strange_in(problem: str) -> list[int]:
    """Return the values of a problem that no class has; none of another problem."""
    found = _STRANGE.search(problem)
    return [int(number) for number in found[1].split(",") if number.strip()] if found else []


def without_class(count: int) -> str | None:
    """Return the words for so many objects that are left out, since their pixels have no class."""
    return partly(count, "objects", "no class in their pixels") if count else None
