"""A class for every pixel from objects with masks: what is true for semantic segmentation, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.images import rle

VOID = 65_535
"""The number of pixels that no class is known of."""


def painted(
    objects: Iterable[Mapping[str, Any]],
    numbers: Mapping[str, int],
    size: tuple[int, int],
    background: int | None = None,
) -> NDArray[np.uint16] | None:
    """Return the number of each pixel's class, (H, W), by the masks of ``objects``; None where one has none.

    ``objects`` are rows of ``truth.OBJECTS``, ``numbers`` lead from their labels to numbers, ``size`` is
    (height, width). Pixels of objects of several classes are `VOID`, as in torchvision's training of
    segmenters on COCO, and so are those of objects to ignore and of labels without a number. Pixels of no
    object are ``background``; they are `VOID`, too, where an object says whether it is a thing: such objects
    are all of a picture, and the rest of it was left open.
    """
    found = np.full(size, VOID, np.uint16)
    taken = np.zeros(size, np.bool_)
    whole = False
    for one in objects:
        inside = rle.pixels(one["mask"]) if one.get("mask") else None
        if inside is None or inside.shape != size:
            return None
        whole |= one.get("is_thing") is not None
        number = VOID if one.get("ignore") else numbers.get(one["label"], VOID)
        clash = inside & taken & (found != number)
        found[inside], taken = number, taken | inside
        found[clash] = VOID
    if background is not None and not whole:
        found[~taken] = background
    return found
