"""Ultralytics' labels: a text file an image, a line an object, and ``data.yaml`` with the classes.

https://docs.ultralytics.com/datasets/detect, .../segment and .../pose. A line is the class's number and
the box's centre and size, or the outline of the mask, or the box and the points; coordinates are
parts of the image's width and height. With scores, the last number of a line is the score: such files
are predictions (``yolo predict save_conf=True``), which Ultralytics doesn't train on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import yaml

from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import Tree, path_of, require_free, require_unique
from cnnbatch.output.export.polygons import outline
from cnnbatch.output.export.predictions import Found, ImageObjects, Predictions
from cnnbatch.storage import Storage

_IMAGES = "images"


class YoloLabels(ExportFormat):
    """Ultralytics' labels: a text file an image."""

    may_lack_scores = True
    bad_masks = "written as their boxes"

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write below ``to`` a file an image in ``labels``, and ``data.yaml``.

        An image where nothing was found has an empty file; one that failed has none.
        """
        require_free(storage, to)
        require_unique(predictions.keys, _path, ".txt")
        numbers = {name: number for number, name in enumerate(predictions.class_names())}
        points = 0
        with Tree(storage, to) as tree:
            for image in chain.from_iterable(map(predictions.images, predictions.parts)):
                if image is not None and image.error is None:
                    found = _lines(image, numbers, predictions)
                    tree.write(f"labels/{_path(image.key)}.txt", "".join(f"{line}\n" for line in found))
                    points = max([points, *(len(one.keypoints or ()) for one in image.objects)])
            tree.write("data.yaml", _data(numbers, points))


def _path(key: str) -> str:
    return path_of(key, _IMAGES)


def _data(numbers: dict[str, int], points: int) -> str:
    """Return ``data.yaml``; the pictures are expected in ``images`` beside it."""
    data: dict[str, Any] = {"train": _IMAGES, "val": _IMAGES}
    if points:
        data["kpt_shape"] = [points, 3]
    data["names"] = {number: name for name, number in numbers.items()}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _lines(image: ImageObjects, numbers: dict[str, int], predictions: Predictions) -> Iterator[str]:
    masks = predictions.has("mask") and not predictions.has("keypoints")
    for one in image.objects:
        places = _outline(one, image, predictions) if masks else _box(one, image)
        score = [f"{one.score:.6f}"] if predictions.options.scores else []
        yield " ".join([str(numbers[one.label]), *places, *_points(one, image), *score])


def _box(one: Found, image: ImageObjects) -> list[str]:
    """Return the centre and the size of the part of a box that is in the image."""
    x1, y1, x2, y2 = (float(number) for number in _parts([one.box[:2], one.box[2:]], image))
    return [_number(value) for value in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]


def _outline(one: Found, image: ImageObjects, predictions: Predictions) -> list[str]:
    """Return the corners of a mask; of an empty or damaged one the box's, for a file is of one kind."""
    x1, y1, x2, y2 = one.box
    inside = predictions.pixels(one, (image.height, image.width))
    corners = [] if inside is None else outline(inside)
    return [_number(value) for value in _parts(corners or [(x1, y1), (x2, y1), (x2, y2), (x1, y2)], image)]


def _points(one: Found, image: ImageObjects) -> Iterator[str]:
    for x, y, visibility in one.keypoints or ():
        yield from (*map(_number, _parts([(x, y)], image)), f"{visibility:g}")


def _parts(points: Iterable[tuple[float, ...]], image: ImageObjects) -> Iterator[float]:
    """Yield x, y of each point as parts of the width and the height, from 0 to 1."""
    for x, y in points:
        yield from (min(max(x / image.width, 0), 1), min(max(y / image.height, 0), 1))


def _number(value: float) -> str:
    return f"{value:.6f}"
