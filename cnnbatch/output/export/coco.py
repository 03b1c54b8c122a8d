"""COCO's results, as `pycocotools.coco.COCO.loadRes` reads them, and the file of their images.

https://cocodataset.org/#format-results. A result is what it was: no number is rounded. Maps are results of
COCO's stuff segmentation: a mask for each class of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from cnnbatch.images import class_map
from cnnbatch.output.export.coco_ids import Id, TruthIds
from cnnbatch.output.export.coco_json import JsonArray, described, images_of, to_json
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import file_at, require_free, spool
from cnnbatch.output.export.predictions import Found, ImageMap, ImageObjects, Predictions
from cnnbatch.storage import Storage


class CocoResults(ExportFormat):
    """COCO's results in one file, and their images and categories in another."""

    kinds = ("objects", "boxes", "map")
    failed = "the file of the images says so"

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write the results, and beside them as ``NAME.images.json`` their images and categories.

        ``to`` is the file of the results, or a folder for ``results.json``. The second file has no
        ``annotations``; an image that failed has its ``error`` there instead of its size.
        """
        results = file_at(to, ".json", "results.json")
        images = f"{results[: -len('.json')]}.images.json"
        require_free(storage, *{to, results, images})
        truth, names = TruthIds(predictions), _names(predictions)
        categories = truth.categories(list(filter(None, names)))
        named = [{"id": number, "name": name} for name, number in categories.items()]
        head = f'{{"categories":{to_json(named)},"images":['
        with spool() as folder:
            with (
                JsonArray(folder / "results", "[", "]") as found,
                JsonArray(folder / "images", head, "]}") as seen,
            ):
                for number, image in images_of(predictions, truth):
                    seen.add(described(number, image))
                    for one in _results(number, image, categories, names):
                        found.add(one)
            storage.put(images, folder / "images")
            storage.put(results, folder / "results")


def _names(predictions: Predictions) -> list[str]:
    return predictions.class_names() if predictions.are_objects else predictions.map_names()


def _results(
    number: Id, image: ImageObjects | ImageMap, categories: Mapping[str, Id], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the results of one image."""
    if isinstance(image, ImageObjects):
        yield from (_result(number, categories[one.label], one) for one in image.objects)
    elif not image.error:
        for one in class_map.runs(image.numbers(), len(names)):
            if name := names[one["class"]]:
                yield {"image_id": number, "category_id": categories[name], "segmentation": one["mask"]}


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
