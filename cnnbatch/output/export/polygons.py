"""Masks as polygons, for tools that know no others: exact, along the edges of pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_SIDES = (  # of a pixel at (0, 0): the neighbour (y, x), and the edge (x, y) -> (x, y), pixel on the right
    ((-1, 0), (0, 0), (1, 0)),
    ((0, 1), (1, 0), (1, 1)),
    ((1, 0), (1, 1), (0, 1)),
    ((0, -1), (0, 1), (0, 0)),
)


def outline(inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return one closed polygon [(x, y)] around all pixels of a mask (height, width); [] of an empty one.

    Parts and holes are joined to the first loop by lines that go there and back, which enclose nothing:
    by the even-odd rule the polygon holds exactly the mask's pixels.
    """
    joined: list[tuple[int, int]] = []
    for loop in _loops(np.pad(inside, 1)):
        corners = _corners(loop)
        joined += [*corners, corners[0], joined[0]] if joined else [*corners, corners[0]]
    # A single loop closes by itself; of several, the last line back to the first does.
    return joined[:-1]


def _loops(inside: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    """Yield closed paths along the edges between pixels that are inside and not; ``inside`` has a margin."""
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (down, right), start, end in _SIDES:
        ys, xs = np.nonzero(inside & ~np.roll(inside, (-down, -right), (0, 1)))
        for x, y in zip((xs - 1).tolist(), (ys - 1).tolist(), strict=True):
            following.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    while following:
        loop = [next(iter(following))]
        while len(loop) == 1 or loop[-1] != loop[0]:
            ends = following[loop[-1]]
            if len(ends) == 1:
                del following[loop[-1]]
            loop.append(ends.pop())
        yield loop[:-1]


def _corners(loop: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the points of a closed path where it turns."""
    around = zip(loop[-1:] + loop[:-1], loop, loop[1:] + loop[:1], strict=True)
    return [here for before, here, after in around if (before[0] == here[0]) != (here[0] == after[0])]
