"""Objects by their masks alone: what their boxes and areas are, and which class their pixels have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from cnnbatch.images import class_map
from cnnbatch.images.class_map import Numbers

MOST = 1 << 16
"""How many numbers a map may have."""


def objects_in(numbers: Numbers, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the object of each number of a map (H, W) that has a label; other numbers are background."""
    found = class_map.runs(numbers, MOST)
    return [masked(labels[one["class"]], one["mask"]) for one in found if one["class"] in labels]


def labels_by_pixels(objects: Numbers, classes: Numbers, labels: Mapping[int, str]) -> dict[int, str]:
    """Return the label of each number of ``objects`` (H, W), that of most of its pixels in ``classes``.

    Pixels of classes without a label do not count; a number of such pixels alone has none.
    """
    pairs = objects.astype(np.int64).ravel() * MOST + classes.ravel()
    found, counts = np.unique(pairs, return_counts=True)
    most: dict[int, tuple[int, int]] = {}
    for pair, count in zip(found.tolist(), counts.tolist(), strict=True):
        number, one = divmod(pair, MOST)
        if one in labels:
            most[number] = max(most.get(number, (0, 0)), (count, -one))
    return {number: labels[-one] for number, (_, one) in most.items()}


def object_of(inside: NDArray[np.bool_], label: str) -> dict[str, Any]:
    """Return the object with a mask (H, W), which may be empty."""
    return masked(label, mask_of(inside))


def mask_of(inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (H, W), which may be empty, as `cnnbatch.truth.MASK`."""
    packed: Any = coco.encode(np.asfortranarray(inside, np.uint8))
    return {"size": list(inside.shape), "counts": packed["counts"].decode()}


def masked(label: str, mask: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a mask as `cnnbatch.truth.MASK`; its box and area in pixels are the mask's."""
    packed: Any = {"size": list(mask["size"]), "counts": mask["counts"].encode()}
    x, y, width, height = coco.toBbox(packed).tolist()
    return {
        "label": label,
        "box": {"x1": x, "y1": y, "x2": x + width, "y2": y + height},
        "mask": dict(mask),
        "crowd": False,
        "area": float(coco.area(packed)),
        "ignore": False,
    }
