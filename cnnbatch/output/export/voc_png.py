"""PASCAL VOC's segmentation: PNG files with its palette, whose values are numbers of classes and objects.

Everingham et al., "The PASCAL VOC2012 Challenge Development Kit" (2012), section 4.4: 0 is background, 255
void. Of maps the values are the places of the model's classes as they are, since one of them is background
where the model knows such a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.output.export.predictions import ImageMap, ImageObjects, Predictions

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
LIST = "ImageSets/Segmentation/predicted.txt"
NAMES = "classes.txt"


def require_few(names: int) -> None:
    """Insist on classes that 8 bits can tell apart; raises UserError."""
    if names > class_map.NONE:
        raise UserError(
            f"--format voc has at most {class_map.NONE} classes in its PNG files, the model has {names:,}\n"
            "  what to do: give --format coco"
        )


def of_map(image: ImageMap) -> bytes:
    """Return the file of a map."""
    numbers = image.numbers()
    none = numbers >= class_map.NONE  # As a map of 16 bits has it, too.
    return class_map.png(np.where(none, class_map.NONE, numbers).astype(np.uint8))


def of_objects(
    predictions: Predictions, image: ImageObjects, numbers: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an image's masks: their classes, by their ``numbers`` from 1 on, and the objects.

    The surest lie on top. Objects are numbered in their order; from the 255th on they are void there.
    """
    classes, objects = (np.zeros((image.height, image.width), np.uint8) for _ in range(2))
    for place, one in sorted(enumerate(image.objects, 1), key=lambda pair: pair[1].score):
        inside = predictions.pixels(one, (image.height, image.width))
        if inside is not None:
            classes[inside] = numbers[one.label]
            objects[inside] = min(place, class_map.NONE)
    yield CLASSES, class_map.png(classes)
    yield OBJECTS, class_map.png(objects)
