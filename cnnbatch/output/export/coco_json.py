"""What COCO's files have in common: their images with their ids, and lists that are written item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnbatch.output.export.coco_ids import Id, TruthIds
from cnnbatch.output.export.predictions import ImageMap, ImageObjects, Predictions

to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def images_of(predictions: Predictions, truth: TruthIds) -> Iterator[tuple[Id, ImageObjects | ImageMap]]:
    """Yield every image that is in the input still, with its id."""
    images = predictions.images if predictions.are_objects else predictions.maps
    for part in predictions.parts:
        for number, image in zip(truth.images(part), images(part), strict=True):
            if image is not None and number is not None:
                yield number, image
            elif image is not None:
                predictions.leave_out(image)


def described(number: Id, image: ImageObjects | ImageMap) -> dict[str, Any]:
    """Return an image as COCO's files list it; one that failed has its ``error`` instead of its size."""
    size = {"width": image.width, "height": image.height}
    return {"id": number, "file_name": image.key, **({"error": image.error} if image.error else size)}


class JsonArray:
    """A JSON array that is written item by item between ``head`` and ``tail``; a block's end closes it."""

    def __init__(self, path: Path, head: str, tail: str) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write(head)
        self._between, self._tail = "\n", f"\n{tail}\n"

    def add(self, item: Mapping[str, Any]) -> None:
        """Write one item, on a line of its own."""
        self._file.write(self._between + to_json(item))
        self._between = ",\n"

    def __enter__(self) -> JsonArray:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._file.write(self._tail)
