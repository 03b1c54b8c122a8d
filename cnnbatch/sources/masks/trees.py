"""How a tree of PASCAL VOC calls its folders of masks."""

from __future__ import annotations

from cnnbatch.storage import join, normalize

CLASSES = "SegmentationClass"
"""A class for every pixel."""

OBJECTS = "SegmentationObject"
"""The number of an object for every pixel; its class is that of the same pixels in `CLASSES`."""


def masks_of_tree(url: str, truth: str) -> str | None:
    """Return the folder of a tree that ``input.truth`` names, by its name or its address; None of none."""
    for name in (CLASSES, OBJECTS):
        if truth == name or normalize(truth) == join(normalize(url), name):
            return name
    return None
