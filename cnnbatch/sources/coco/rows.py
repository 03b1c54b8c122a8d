"""One image's entry of a COCO file as a row of the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from cnnbatch.sources.objects import of_coco
from cnnbatch.truth.problems import partly

_LEAST = 6  # Numbers of a polygon: three points.

Height = int | None
Width = int | None


def row_of(image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an image as `CocoIndex.entry` has it; empty where the file doesn't know it."""
    if not image:
        return {}
    size, found = (image["height"], image["width"]), image["objects"]
    return {
        "image_id": str(image["id"]),
        "width": size[1],
        "height": size[0],
        "objects": None if found is None else [_object(one, size) for one in found],
        "problem": _left_out(found or ()),
    }


def _object(one: Mapping[str, Any], size: tuple[Height, Width]) -> dict[str, Any]:
    return {
        "label": one["label"],
        **of_coco(one, one["bbox"]),
        "mask": _mask(one.get("segmentation"), size),
        "keypoints": _keypoints(one.get("keypoints")),
    }


def _mask(segmentation: Any, size: tuple[Height, Width]) -> dict[str, Any] | None:
    """Return a mask as compressed run lengths, as pycocotools makes them of polygons and of plain counts."""
    if not segmentation:
        return None
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= _LEAST]
        if not polygons or None in size:
            return None
        found = coco.merge(coco.frPyObjects(polygons, *size))
    elif isinstance(segmentation["counts"], list):
        found = coco.frPyObjects(segmentation, *segmentation["size"])
    else:
        return {"size": segmentation["size"], "counts": segmentation["counts"]}
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def _left_out(objects: Sequence[Mapping[str, Any]]) -> str | None:
    """Say how many polygons are left out; None where none is."""
    masks = [mask for one in objects if isinstance(mask := one.get("segmentation"), list)]
    short = sum(len(polygon) < _LEAST for mask in masks for polygon in mask)
    return partly(short, "polygons", "fewer than three points") if short else None


def _keypoints(flat: Sequence[float] | None) -> list[dict[str, float]] | None:
    if not flat:
        return None
    points = zip(*(islice(flat, start, None, 3) for start in range(3)), strict=True)
    return [{"x": x, "y": y, "visibility": visibility} for x, y, visibility in points]
