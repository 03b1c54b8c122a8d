"""Colours of the classes of maps and of segments: what people know them by, else as far apart as can be.

A class with a conventional colour has it on every page; the others follow from their places, so that the
classes of one model differ as long as there are colours.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import count

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

NO_CLASS: Colour = (255, 255, 255)
"""What ground truth ignores, and what is predicted as no class."""

_CONVENTIONAL: dict[str, Colour] = {
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "building": (122, 98, 82),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (250, 170, 30),
    "sign": (225, 215, 0),
    "tree": (84, 142, 35),
    "grass": (152, 225, 120),
    "sky": (70, 140, 200),
    "person": (220, 20, 60),
    "rider": (255, 90, 40),
    "car": (20, 40, 180),
    "truck": (0, 120, 140),
    "bus": (0, 90, 110),
    "train": (0, 150, 120),
    "motorcycle": (110, 60, 240),
    "bicycle": (150, 11, 50),
    "water": (60, 90, 220),
}
"""Near the colours of Cityscapes' classes (Cordts et al. 2016), the darkest of them lighter."""

_ALSO = {
    **dict.fromkeys(("sidewalk", "footpath"), "pavement"),
    **dict.fromkeys(("trafficsign", "signsymbol", "signs", "trafficlight"), "sign"),
    **dict.fromkeys(("vegetation", "trees"), "tree"),
    **dict.fromkeys(("terrain", "field"), "grass"),
    **dict.fromkeys(("pedestrian", "people"), "person"),
    **dict.fromkeys(("bicyclist", "cyclist"), "rider"),
    **dict.fromkeys(("motorbike",), "motorcycle"),
    **dict.fromkeys(("columnpole", "polegroup"), "pole"),
    **dict.fromkeys(("house", "buildings"), "building"),
    **dict.fromkeys(("sea", "river", "lake"), "water"),
}

_APART: Sequence[Colour] = (
    *((243, 195, 0), (135, 86, 146), (243, 132, 0), (161, 202, 241), (190, 0, 50), (194, 178, 128)),
    *((0, 136, 86), (230, 143, 172), (0, 103, 165), (249, 147, 121), (96, 78, 151), (246, 166, 0)),
    *((179, 68, 108), (220, 211, 0), (136, 45, 23), (141, 182, 0), (101, 69, 34), (226, 88, 34)),
)
"""Kelly: Twenty-two colors of maximum contrast (1965), without white, black, gray and the darkest green."""

_BACKGROUND = frozenset(
    {"", "background", "bg", "void", "unlabelled", "unlabeled", "other", "na", "noperson"}
)
_NEAR = 40.0  # Two colours that are less apart are taken for one.


def colours(names: Sequence[str]) -> NDArray[np.uint8]:
    """Return a colour for each class, (C, 3): the same for the same names in the same order."""
    known = [conventional(name) for name in names]
    taken = [one for one in known if one is not None]
    others = _others()
    for place, colour in enumerate(known):
        if colour is None:
            apart = _NEAR if len(taken) < len(_APART) else 0.0
            fresh = next(one for one in others if all(_distance(one, each) > apart for each in taken))
            taken.append(fresh)
            known[place] = fresh
    return np.array(known, np.uint8).reshape(-1, 3)


def conventional(name: str) -> Colour | None:
    """Return the colour that people know a class by; None where there is none."""
    letters = _letters(name)
    return _CONVENTIONAL.get(_ALSO.get(letters, letters))


def colour_of(name: str) -> Colour:
    """Return a colour that follows from a class's name alone, so that two classes may share it."""
    known = conventional(name)
    return known or _APART[blake2b(name.encode(), digest_size=1).digest()[0] % len(_APART)]


def is_background(name: str) -> bool:
    """Say whether a class is what is left over, so that the picture is shown there as it is."""
    return _letters(name) in _BACKGROUND


def css(colour: Sequence[int]) -> str:
    """Return a colour as style sheets have it."""
    return "#{:02x}{:02x}{:02x}".format(*(int(part) for part in colour))


def _others() -> Iterator[Colour]:
    """Yield colours without end: those that are apart, then hues by the golden ratio."""
    yield from _APART
    for number in count():
        hue = (0.12 + number * 0.618034) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.55, 0.85)[number % 2], (0.95, 0.65)[number // 2 % 2])
        yield round(255 * red), round(255 * green), round(255 * blue)


def _distance(one: Colour, other: Colour) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))


def _letters(name: str) -> str:
    """Return the letters of a name, without what COCO's panoptic classes end in."""
    return "".join(filter(str.isalnum, name.casefold().removesuffix("-merged").removesuffix("-other")))
