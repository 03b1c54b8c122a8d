"""What pycocotools calls IoU types: boxes and masks are compared by their IoU, keypoints by their OKS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as rle

from cnnbatch.metrics.objects import ObjectPairs, Objects, crowd_iou_xywh

ALL, SMALL, MEDIUM, LARGE = (0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10)
"""Ranges of area in square pixels, both ends inside (pycocotools, ``Params.areaRng``)."""

SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""COCO's spread of each of a person's 17 keypoints (pycocotools, ``Params.kpt_oks_sigmas``)."""

SWAPPED = tuple((left, left + 1) for left in range(1, 17, 2))
"""Which of COCO's keypoints change places where a person is mirrored: those of the left and the right."""

Overlap = Callable[[Objects, Objects, ObjectPairs], NDArray[np.float64]]
_OfEach = Callable[[Objects], Any]


class Stat(NamedTuple):
    """One of COCO's numbers: ``threshold`` and ``area`` count from 0; a threshold of None is the mean."""

    name: str
    recall: bool
    threshold: int | None = None
    area: int = 0
    most: int = -1


@dataclass(frozen=True, slots=True)
class IouType:
    """One of the three comparisons, by a ``field`` of objects; ``most`` are detections an image and class."""

    name: str
    field: str
    prefix: str
    ranges: tuple[tuple[float, float], ...]
    most: tuple[int, ...]
    stats: tuple[Stat, ...]
    overlap: Overlap
    ignored: _OfEach
    detection_area: _OfEach
    usable: Callable[[Objects], Mapping[str, NDArray[np.bool_]]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by name."""
        return iou_type, (self.name,)


def iou_type(name: str) -> IouType:
    """Return the type of this name."""
    return IOU_TYPES[name]


def _box_overlap(found: Objects, truths: Objects, pairs: ObjectPairs) -> NDArray[np.float64]:
    first, second = pairs.first, pairs.second
    return crowd_iou_xywh(found.boxes_xywh[first], truths.boxes_xywh[second], truths.crowd[second])


def _mask_overlap(found: Objects, truths: Objects, pairs: ObjectPairs) -> NDArray[np.float64]:
    """Ask pycocotools for all of an image and class at once; its pairs are a whole matrix, row by row."""
    if not len(pairs.first):
        return np.zeros(0)
    own, theirs = _masks(found), _masks(truths)
    overlaps = []
    for first, second in _matrices(pairs):
        crowd = truths.crowd[second].astype(np.uint8)
        overlaps.append(rle.iou([own[one] for one in first], [theirs[one] for one in second], crowd).ravel())
    return np.concatenate(overlaps)


def _matrices(pairs: ObjectPairs) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the detections and the truths of each image and class that has both."""
    low = np.flatnonzero(np.diff(pairs.first, prepend=-1))
    start = pairs.second[low]
    groups = np.flatnonzero(np.diff(start, prepend=-1))
    ends = np.append(low, len(pairs.first))
    found = []
    for begin, end in zip(groups, [*groups[1:], len(low)], strict=True):
        found.append((pairs.first[low[begin:end]], pairs.second[ends[begin] : ends[begin + 1]]))
    return found


def _masks(objects: Objects) -> list[dict[str, Any]]:
    masks = pc.struct_field(objects.struct, "mask").to_pylist()
    return [{"size": mask["size"], "counts": mask["counts"].encode()} for mask in masks]


def _mask_area(objects: Objects) -> NDArray[np.float64]:
    """Ask pycocotools for some at a time: with numpy 2, ``mask.area`` fails for a list of more than 255."""
    masks = _masks(objects)
    some = [rle.area(masks[start : start + 255]) for start in range(0, len(masks), 255)]
    areas: NDArray[np.float64] = np.concatenate([np.zeros(0), *some])
    return areas


def _keypoints(objects: Objects) -> NDArray[np.float64]:
    """Return x, y and visibility of each object's keypoints, float64 (n, K, 3)."""
    lists: Any = pc.struct_field(objects.struct, "keypoints")
    points: Any = pc.list_flatten(lists)
    columns = [
        pc.struct_field(points, name).cast(pa.float64()).to_numpy(zero_copy_only=False)
        for name in ("x", "y", "visibility")
    ]
    number = len(points) // len(objects) if len(objects) else 0
    return np.stack(columns, axis=1).reshape(len(objects), number, 3)


def _similarity(found: Objects, truths: Objects, pairs: ObjectPairs) -> NDArray[np.float64]:
    """Return the object keypoint similarity; a truth without labelled points is compared by its box.

    pycocotools, ``COCOeval.computeOks``: the mean of exp(-d² / (2 · area · (2σ)²)) over labelled points. The
    sigmas are the objects' own, or COCO's.
    """
    if not len(pairs.first):
        return np.zeros(0)
    own, theirs = _keypoints(found)[pairs.first], _keypoints(truths)[pairs.second]
    labelled: Any = theirs[:, :, 2] > 0
    some = labelled.any(axis=1)
    box, area = truths.boxes_xywh[pairs.second], truths.area[pairs.second]
    low, high = box[:, :2] - box[:, 2:], box[:, :2] + 2 * box[:, 2:]
    points = own[:, :, :2]
    beyond = np.maximum(0, low[:, None] - points) + np.maximum(0, points - high[:, None])
    away = np.where(some[:, None, None], points - theirs[:, :, :2], beyond)
    exponent = (away**2).sum(axis=2) / (2 * _sigmas(found)) ** 2 / (area[:, None] + np.spacing(1)) / 2
    counted = labelled | ~some[:, None]
    similarity: NDArray[np.float64] = np.exp(-exponent).sum(axis=1, where=counted) / counted.sum(axis=1)
    return similarity


def _keypoint_area(objects: Objects) -> NDArray[np.float64]:
    """Return the area of the box around all of an object's points, as ``COCO.loadRes`` does."""
    points = _keypoints(objects)[:, :, :2]
    if not len(points):
        return np.zeros(0)
    sides = points.max(axis=1) - points.min(axis=1)
    area: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return area


def _box_area(objects: Objects) -> NDArray[np.float64]:
    area: NDArray[np.float64] = objects.boxes_xywh[:, 2] * objects.boxes_xywh[:, 3]
    return area


def _known(objects: Objects) -> dict[str, NDArray[np.bool_]]:
    """Return by the reason why not, which objects can be compared."""
    finite = np.isfinite(objects.boxes_xywh).all(axis=1) & np.isfinite(objects.score)
    return {"of no class": objects.label >= 0, "with a box or score that is no number": finite}


def _known_masks(objects: Objects) -> dict[str, NDArray[np.bool_]]:
    return {**_known(objects), "without a mask": _valid(objects, "mask")}


def _known_points(objects: Objects) -> dict[str, NDArray[np.bool_]]:
    lengths = pc.fill_null(pc.list_value_length(pc.struct_field(objects.struct, "keypoints")), 0)
    count = len(_sigmas(objects))
    whole = lengths.to_numpy(zero_copy_only=False) == count
    return {**_known(objects), f"without {count} keypoints": whole}


def _sigmas(objects: Objects) -> NDArray[np.float64]:
    return np.array(objects.sigmas) if objects.sigmas else SIGMAS


def _valid(objects: Objects, name: str) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = pc.struct_field(objects.struct, name).is_valid().to_numpy(zero_copy_only=False)
    return valid


def _crowd(objects: Objects) -> NDArray[np.bool_]:
    return objects.crowd


def _crowd_or_unlabelled(objects: Objects) -> NDArray[np.bool_]:
    labelled: Any = _keypoints(objects)[:, :, 2] > 0
    ignored: NDArray[np.bool_] = objects.crowd | ~labelled.any(axis=1)
    return ignored


def _twelve(prefix: str) -> tuple[Stat, ...]:
    sizes = [("s", 1), ("m", 2), ("l", 3)]
    return (
        Stat(f"{prefix}AP", False),
        Stat(f"{prefix}AP50", False, 0),
        Stat(f"{prefix}AP75", False, 5),
        *(Stat(f"{prefix}AP{size}", False, None, area) for size, area in sizes),
        *(Stat(f"{prefix}AR{most}", True, None, 0, place) for place, most in enumerate((1, 10, 100))),
        *(Stat(f"{prefix}AR{size}", True, None, area) for size, area in sizes),
    )


def _ten(prefix: str) -> tuple[Stat, ...]:
    ends = [("", None, 0), ("50", 0, 0), ("75", 5, 0), ("m", None, 1), ("l", None, 2)]
    return tuple(
        Stat(f"{prefix}A{letter}{end}", letter == "R", threshold, area)
        for letter in "PR"
        for end, threshold, area in ends
    )


IOU_TYPES: dict[str, IouType] = {
    iou_type.name: iou_type
    for iou_type in (
        IouType(
            name="boxes",
            field="box",
            prefix="",
            ranges=(ALL, SMALL, MEDIUM, LARGE),
            most=(1, 10, 100),
            stats=_twelve(""),
            overlap=_box_overlap,
            ignored=_crowd,
            detection_area=_box_area,
            usable=_known,
        ),
        IouType(
            name="masks",
            field="mask",
            prefix="mask_",
            ranges=(ALL, SMALL, MEDIUM, LARGE),
            most=(1, 10, 100),
            stats=_twelve("mask_"),
            overlap=_mask_overlap,
            ignored=_crowd,
            detection_area=_mask_area,
            usable=_known_masks,
        ),
        IouType(
            name="keypoints",
            field="keypoints",
            prefix="keypoint_",
            ranges=(ALL, MEDIUM, LARGE),
            most=(20,),
            stats=_ten("keypoint_"),
            overlap=_similarity,
            ignored=_crowd_or_unlabelled,
            detection_area=_keypoint_area,
            usable=_known_points,
        ),
    )
}
"""The types by name."""
