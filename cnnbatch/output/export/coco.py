"""COCO's results, as `pycocotools.coco.COCO.loadRes` reads them, and the file of their images.

https://cocodataset.org/#format-results. A result is what it was: no number is rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from cnnbatch.output.export.coco_ids import Id, TruthIds
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import file_at, require_free, spool
from cnnbatch.output.export.predictions import Found, ImageObjects, Predictions
from cnnbatch.storage import Storage

_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class CocoResults(ExportFormat):
    """COCO's results in one file, and their images and categories in another."""

    failed = "the file of the images says so"

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write the results, and beside them as ``NAME.images.json`` their images and categories.

        ``to`` is the file of the results, or a folder for ``results.json``. The second file has no
        ``annotations``; an image that failed has its ``error`` there instead of its size.
        """
        results = file_at(to, ".json", "results.json")
        images = f"{results[: -len('.json')]}.images.json"
        require_free(storage, *{to, results, images})
        truth = TruthIds(predictions)
        categories = truth.categories(predictions.class_names())
        named = [{"id": number, "name": name} for name, number in categories.items()]
        head = f'{{"categories":{_json(named)},"images":['
        with spool() as folder:
            with _Array(folder / "results", "[", "]") as found, _Array(folder / "images", head, "]}") as seen:
                for number, image in _images(predictions, truth):
                    seen.add(_image(number, image))
                    for one in image.objects:
                        found.add(_result(number, categories[one.label], one))
            storage.put(images, folder / "images")
            storage.put(results, folder / "results")


def _images(predictions: Predictions, truth: TruthIds) -> Iterator[tuple[Id, ImageObjects]]:
    """Yield every image that is in the input still, with its id."""
    for part in predictions.parts:
        for number, image in zip(truth.images(part), predictions.images(part), strict=True):
            if image is not None and number is not None:
                yield number, image
            elif image is not None:
                predictions.leave_out(image)


def _image(number: Id, image: ImageObjects) -> dict[str, Any]:
    size = {"width": image.width, "height": image.height}
    return {"id": number, "file_name": image.key, **({"error": image.error} if image.error else size)}


def _result(image: Id, category: Id, one: Found) -> dict[str, Any]:
    x1, y1, x2, y2 = one.box
    entry: dict[str, Any] = {
        "image_id": image,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "score": one.score,
    }
    if one.mask is not None:
        entry["segmentation"] = one.mask
    if one.keypoints is not None:
        entry["keypoints"] = list(chain.from_iterable(one.keypoints))
    return entry


class _Array:
    """A JSON array that is written item by item between ``head`` and ``tail``; a block's end closes it."""

    def __init__(self, path: Path, head: str, tail: str) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write(head)
        self._between, self._tail = "\n", f"\n{tail}\n"

    def add(self, item: Mapping[str, Any]) -> None:
        """Write one item, on a line of its own."""
        self._file.write(self._between + _json(item))
        self._between = ",\n"

    def __enter__(self) -> _Array:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            self._file.write(self._tail)
