"""COCO's panoptic segmentation: a PNG file an image, whose colours are ids of segments, and one JSON file.

https://cocodataset.org/#format-data, section 4, and #format-results: the id of a pixel's segment is
R + 256 · G + 256² · B, and 0 is void.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.images.class_map import colours
from cnnbatch.output.export.coco_ids import Id, TruthIds
from cnnbatch.output.export.coco_json import JsonArray, described, images_of, to_json
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import Tree, path_of, require_free, require_unique, spool
from cnnbatch.output.export.predictions import Found, ImageObjects, Predictions
from cnnbatch.storage import Storage, redact

_IMAGES = "images"
_NUMBERS = 1 << 24  # that three bytes have
_STEP = 0x0B0907  # from one id of a class to the next, so that their colours are near and can be told apart


class CocoPanoptic(ExportFormat):
    """COCO's panoptic segmentation: ``panoptic.json``, and a PNG file an image in ``panoptic``."""

    kinds = ("objects",)
    failed = "the JSON file says so"
    stuff = True

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write below ``to`` the PNG files, then the JSON file of segments, images and categories.

        Of segments that overlap, a pixel belongs to the first; one that has no pixel left is left out and
        counted. Categories are those that have a segment.

        Raises:
            UserError: the objects do not say whether they are things.
        """
        if not (predictions.has("mask") and predictions.has("is_thing")):
            raise UserError(
                "--format panoptic is for objects that are things or stuff, with masks, and "
                f"{redact(predictions.uri)} has none\n  what to do: give --format coco"
            )
        require_free(storage, to)
        require_unique(predictions.keys, _path, ".png")
        truth = TruthIds(predictions)
        categories = truth.categories(predictions.class_names())
        with spool() as folder, Tree(storage, to) as tree:
            written = _Written(folder, categories, predictions)
            with written.segments, written.images:
                for number, image in images_of(predictions, truth):
                    written.images.add(described(number, image))
                    if isinstance(image, ImageObjects) and image.error is None:
                        path = f"{_path(image.key)}.png"
                        tree.write(f"panoptic/{path}", written.add(number, path, image))
            tree.put("panoptic.json", written.whole())


class _Written:
    """The lists of the JSON file as they grow on the local disk; ``categories`` leads to ids."""

    def __init__(self, folder: Path, categories: Mapping[str, Id], predictions: Predictions) -> None:
        self.segments = JsonArray(folder / "segments", '{"annotations":[', "],")
        self.images = JsonArray(folder / "images", '"images":[', "],")
        self._folder, self._categories, self._predictions = folder, categories, predictions
        self._shades = dict(zip(categories, colours(len(categories) + 1)[1:].tolist(), strict=True))
        self._things: dict[str, bool] = {}

    def add(self, number: Id, path: str, image: ImageObjects) -> bytes:
        """Add the segments of one image, whose PNG file is returned."""
        ids, taken, listed = np.zeros((image.height, image.width), np.uint32), {0}, []
        for one in image.objects:
            inside = self._pixels_left(one, ids)
            if inside is not None:
                id = _free(self._shades[one.label], taken)
                ids[inside] = id
                self._things[one.label] = bool(one.is_thing) or self._things.get(one.label, False)
                listed.append({"id": id, "category_id": self._categories[one.label], **_measured(inside)})
        self.segments.add({"image_id": number, "file_name": path, "segments_info": listed})
        return _png(ids)

    def _pixels_left(self, one: Found, ids: NDArray[np.uint32]) -> NDArray[np.bool_] | None:
        """Return the pixels of a segment that no other one has; None, and counted, where there are none."""
        inside = self._predictions.pixels(one, (ids.shape[0], ids.shape[1]))
        if inside is not None:
            inside &= ids == 0
            if inside.any():
                return inside
        counts = self._predictions.counts
        counts.objects -= 1
        counts.hidden += inside is not None or one.mask is None  # A damaged one is counted as that.
        return None

    def whole(self) -> Path:
        """Return the finished JSON file."""
        rows = [
            {"id": self._categories[name], "name": name, "isthing": int(thing), "color": self._shades[name]}
            for name, thing in sorted(self._things.items())
        ]
        whole = self._folder / "panoptic"
        with whole.open("wb") as file:
            for name in ("segments", "images"):
                with (self._folder / name).open("rb") as part:
                    shutil.copyfileobj(part, file)
            file.write(f'"categories":{to_json(rows)}}}\n'.encode())
        return whole


def _path(key: str) -> str:
    return path_of(key, _IMAGES)


def _free(shade: list[int], taken: set[int]) -> int:
    """Return an id near the colour of a class that no segment of the image has yet."""
    id = shade[0] + (shade[1] << 8) + (shade[2] << 16)
    while id in taken:
        id = (id + _STEP) % _NUMBERS
    taken.add(id)
    return id


def _measured(inside: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the area of a segment and its box: x, y, width, height."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {"area": int(inside.sum()), "bbox": [int(side) for side in box], "iscrowd": 0}


def _png(ids: NDArray[np.uint32]) -> bytes:
    parts = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(parts).save(sink, "PNG")
    return sink.getvalue()
