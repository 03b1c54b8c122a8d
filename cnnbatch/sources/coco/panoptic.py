"""The PNG files of a panoptic COCO file, whose colours are numbers of objects, as rows of the ground truth.

The number of a colour is R + 256 G + 65,536 B (panopticapi, ``rgb2id``); 0 belongs to no object.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cnnbatch.images import class_map
from cnnbatch.images.limits import LIMITS
from cnnbatch.sources.masks import problems
from cnnbatch.sources.masks.meaning import Meaning
from cnnbatch.sources.masks.objects import mask_of, masked
from cnnbatch.sources.masks.problems import Unusable
from cnnbatch.sources.masks.reading import known_numbers, mask_bytes, png
from cnnbatch.sources.objects import of_coco
from cnnbatch.storage import Storage

_SHOWN = 8


def objects_row(storage: Storage, folder: str, image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an image with the objects of its entry, and their masks by its file in ``folder``."""
    row = {"image_id": str(image["id"])}
    try:
        places = _places(storage, folder, image)
    except Unusable as problem:
        return {**row, "problem": problems.left_out(problem, "objects are")}
    masks = {one["class"]: one["mask"] for one in class_map.runs(places, len(image["objects"]) + 1)}
    height, width = places.shape
    objects = [
        _object(one, masks.get(place) or mask_of(np.zeros((height, width), np.bool_)))
        for place, one in enumerate(image["objects"], 1)
    ]
    return {**row, "objects": objects, "width": width, "height": height}


def map_row(
    storage: Storage, folder: str, image: Mapping[str, Any], meaning: Meaning, void: int
) -> dict[str, Any]:
    """Return the row of an image with the category of every pixel, ``void`` outside of objects."""
    row = {"image_id": str(image["id"])}
    try:
        places = _places(storage, folder, image)
        categories: Any = np.array([void, *(one["category"] for one in image["objects"])], np.uint16)
        values = categories.astype(np.uint8) if void == class_map.NONE else categories
        numbers = known_numbers(values[places], meaning, image["file"])
    except Unusable as problem:
        return {**row, "problem": problems.left_out(problem)}
    height, width = numbers.shape
    return {**row, "map": png(numbers), "width": width, "height": height}


def _object(one: Mapping[str, Any], mask: Mapping[str, Any]) -> dict[str, Any]:
    found = masked(one["label"], mask)
    stated = of_coco(one, one["bbox"]) if "bbox" in one else {"crowd": bool(one.get("iscrowd"))}
    return {**found, **stated, "area": one.get("area", found["area"]), "is_thing": one["is_thing"]}


def _places(storage: Storage, folder: str, image: Mapping[str, Any]) -> NDArray[np.uint16]:
    """Return for each pixel (H, W) the place of its object among the image's, counted from 1; 0 for none.

    Raises Unusable where the file is missing, or no map of these objects.
    """
    data = mask_bytes(storage, folder, image["file"])
    if data is None:
        raise Unusable(f"its map {image['file']} is missing")
    numbers = _numbers(data, image["file"])
    known = np.array([0, *(one["id"] for one in image["objects"])], np.int64)
    order = np.argsort(known)
    found = np.searchsorted(known[order], numbers).clip(max=len(known) - 1)
    strange = known[order][found] != numbers
    if strange.any():
        raise _not_described(image["file"], np.unique(numbers[strange]).tolist())
    places: NDArray[np.uint16] = order[found].astype(np.uint16)
    return places


def _not_described(file: str, numbers: Sequence[int]) -> Unusable:
    more = f" and {len(numbers) - _SHOWN:,} more" if len(numbers) > _SHOWN else ""
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return Unusable(f"{file} has colours that are no segment's id: {shown}{more}")


def _numbers(data: bytes, file: str) -> NDArray[np.int64]:
    """Return the numbers (H, W) of a file's colours."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.format != "PNG":
                raise Unusable(f"{file}: {class_map.no_png(image.format)}")
            if image.mode not in ("RGB", "RGBA"):
                raise Unusable(f"{file}: expected a PNG of colours, got one of {image.mode}")
            if image.width * image.height > LIMITS.max_pixels:
                raise Unusable(f"{file}: expected at most {LIMITS.max_pixels:,} pixels")
            colours = np.asarray(image)[..., :3].astype(np.int64)
    except UnidentifiedImageError:
        raise Unusable(f"{file}: it is no whole PNG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unusable(f"{file}: it is no whole PNG file: {error}") from None
    numbers: NDArray[np.int64] = colours @ np.array([1, 256, 65_536])
    return numbers
