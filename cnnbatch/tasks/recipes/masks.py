"""The masks of a picture's objects at its input's size, as arrays that a loss compares and as run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.images import rle

Masks = NDArray[np.uint8]
"""(K, height, width); 1 inside."""
Size = tuple[int, int]
"""(height, width) in pixels."""


def resized(masks: Sequence[Mapping[str, Any]], size: Size, target: Size) -> Masks:
    """Return `truth.MASK` of a picture of ``size`` for one that is resized to ``target``, the nearest pixels.

    As torchvision's ``GeneralizedRCNNTransform`` resizes them; one at a time is there at its own size. Raises
    ValueError for a mask that is damaged or of another size.
    """
    found = np.zeros((len(masks), *target), np.uint8)
    rows, columns = (_nearest(*sides) for sides in zip(size, target, strict=True))
    for place, mask in zip(found, masks, strict=True):
        stated = tuple(mask["size"])
        if stated != size:
            raise ValueError(f"a mask was made for {stated} (height, width), the picture has {size}")
        inside = rle.pixels(mask)
        if inside is None:
            raise ValueError("the run lengths of a mask are damaged: they do not fill its size")
        place[:] = inside[rows[:, None], columns]
    return found


def _nearest(count: int, wanted: int) -> NDArray[np.int64]:
    """Return which of ``count`` pixels stand in the places of others: torch's ``interpolate``, nearest."""
    scale = np.float32(count) / np.float32(wanted)
    places = np.floor(np.arange(wanted, dtype=np.float32) * scale).astype(np.int64)
    found: NDArray[np.int64] = np.minimum(places, count - 1)
    return found


def encoded(masks: Masks) -> tuple[dict[str, Any], ...]:
    """Return masks as `truth.MASK`."""
    if not len(masks):
        return ()
    columns = masks.transpose(0, 2, 1).reshape(len(masks), -1)
    edges = [np.flatnonzero(np.diff(one, prepend=np.uint8(0))) for one in columns]
    return tuple(rle.from_edges(edges, (masks.shape[1], masks.shape[2])))
