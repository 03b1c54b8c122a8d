"""A tree's masks as ground truth: PASCAL VOC's ``SegmentationClass``, and objects by ``SegmentationObject``.

A mask's palette is for people; its values are the indices. 255, the border of objects, does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from cnnbatch.images.class_map import NONE
from cnnbatch.sources.masks import problems
from cnnbatch.sources.masks.classes import listed_classes
from cnnbatch.sources.masks.meaning import Meaning, meaning_of
from cnnbatch.sources.masks.objects import labels_by_pixels, objects_in
from cnnbatch.sources.masks.problems import Unusable
from cnnbatch.sources.masks.reading import known_numbers, map_row, read_values
from cnnbatch.sources.masks.trees import CLASSES
from cnnbatch.sources.voc.source import VOC, VOC_CLASSES, XmlTree, splits_of
from cnnbatch.storage import Storage, join
from cnnbatch.truth import Class
from cnnbatch.types import ImageRef

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

BACKGROUND = "background"

_SETS = "ImageSets/Segmentation"
_NO_OBJECT = (0, NONE)


@dataclass(frozen=True)
class ClassTree(XmlTree):
    """The images of a tree with their maps of classes."""

    meaning: Meaning = Meaning((), frozenset())
    reads_masks: ClassVar[bool] = True

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of maps, with their classes."""
        return self.meaning.schema

    def row(self, ref: ImageRef) -> dict[str, Any]:
        """Return an image's map; empty where it has none."""
        found = map_row(self.storage, self.root, self.annotation(ref), self.meaning)
        return {"image_id": self.name(ref), **found} if found else {}


@dataclass(frozen=True)
class ObjectTree(XmlTree):
    """The images of a tree with an object for each number of their masks; ``meaning`` is that of classes."""

    meaning: Meaning = Meaning((), frozenset())
    reads_masks: ClassVar[bool] = True

    def row(self, ref: ImageRef) -> dict[str, Any]:
        """Return an image's objects; empty where it has no mask."""
        try:
            found = self._objects(ref)
        except Unusable as problem:
            found = {"problem": problems.left_out(problem, "objects are")}
        return {"image_id": self.name(ref), **found} if found else {}

    def _objects(self, ref: ImageRef) -> dict[str, Any]:
        path, of_classes = self.annotation(ref), f"{CLASSES}/{self.name(ref)}{self.layout.annotated}"
        numbers = read_values(self.storage, self.root, path)
        if numbers is None:
            return {}
        values = read_values(self.storage, self.root, of_classes)
        if values is None or values.shape != numbers.shape:
            raise Unusable(f"{of_classes} is {'missing' if values is None else 'of another size'}")
        labels = labels_by_pixels(numbers, known_numbers(values, self.meaning, of_classes), self._labels)
        numbered = [number for number in np.unique(numbers).tolist() if number not in _NO_OBJECT]
        height, width = numbers.shape
        return {
            "objects": objects_in(
                numbers, {number: labels[number] for number in numbered if number in labels}
            ),
            "width": width,
            "height": height,
            "problem": problems.without_class(sum(one not in labels for one in numbered)),
        }

    @cached_property
    def _labels(self) -> dict[int, str]:
        """The labels of objects by the numbers of their classes; the background is none."""
        return {int(one.id): one.name for one in self.classes}


def open_mask_tree(input: Input, storage: Storage, root: str, folder: str) -> XmlTree:
    """Return the source of a tree with the masks of one of its folders as ground truth."""
    layout = replace(VOC, annotations=folder, sets=_SETS, annotated=".png")
    own = [Class(name, number) for number, name in enumerate((BACKGROUND, *VOC_CLASSES))]
    listed = listed_classes(join(root, CLASSES), storage) or own
    meaning, splits = meaning_of(input, listed), splits_of(input)
    if folder == CLASSES:
        return ClassTree(storage, root, layout, splits, meaning=meaning)
    background = int(meaning.of(np.zeros((1, 1), np.uint8))[0, 0])
    classes = tuple(one for one in meaning.classes if one.id != background)
    return ObjectTree(storage, root, layout, splits, classes, meaning=meaning)
