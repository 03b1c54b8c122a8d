"""The boxes of a picture as small arrays, which travel between workers; what is done to pictures, to them.

float32, as torchvision's targets are: the exact numbers of a test come from the predictions' float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.images.pasted_masks import pasted
from cnnbatch.metrics import coco
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.truth import BOX, KEYPOINT, MASK, keypoints_field

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Objects of one picture: ``boxes_xyxy`` float32 (K, 4), ``labels`` int64 (K,); scores of detections.

    ``crowd`` says of a truth which are crowds, bool (K,), ``areas`` how large its objects are in square
    pixels, float32 (K,). Where there are any, ``masks`` are K `truth.MASK` in the same pixels, and ``points``
    float32 (K, P, 3) keypoints (x, y, visibility).
    """

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    areas: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    masks: tuple[Mapping[str, Any], ...] = ()
    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 3), np.float32))

    @classmethod
    def of_detections(cls, found: Mapping[str, Tensor], size: Size) -> Boxes:
        """Return what a detector gives of a picture of ``size``, see `models.detector.Detections`."""
        boxes, labels, scores = (found[name].cpu() for name in ("boxes", "labels", "scores"))
        made = cls(boxes.float().numpy(), labels.numpy(), scores.float().numpy())
        if "masks" in found:
            small = found["masks"].float().cpu().numpy()[:, 0]
            made = replace(made, masks=tuple(pasted(small, made.boxes_xyxy, size)))
        if "keypoints" in found:
            made = replace(made, points=found["keypoints"].float().cpu().numpy())
        return made

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Boxes:
        """Return some of them, by number or by mask, in that order."""
        places = np.arange(len(self))[rows]
        rest = {
            name: values[places] if len(values := getattr(self, name)) else values
            for name in ("scores", "crowd", "areas", "points")
        }
        masks = tuple(self.masks[place] for place in places) if self.masks else ()
        return Boxes(self.boxes_xyxy[places], self.labels[places], masks=masks, **rest)

    def clipped(self, size: Size) -> tuple[Boxes, NDArray[np.bool_]]:
        """Return them clipped to a picture of ``size``, and which (K,) were kept: those that have an area."""
        limit = np.array([size[1], size[0]] * 2, np.float32)
        boxes = np.clip(self.boxes_xyxy, 0, limit)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept: NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) > 0  # False for what is no number.
        return replace(self, boxes_xyxy=boxes).take(kept), kept

    def resized(self, size: Size, target: Size) -> Boxes:
        """Return them, that have no masks, for a picture of ``size`` that is resized to ``target``."""
        ratio = np.array([target[1] / size[1], target[0] / size[0]], np.float32)
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy * np.tile(ratio, 2),
            areas=self.areas * ratio.prod(),
            points=self.points * np.append(ratio, np.float32(1)),
        )

    def mirrored(self, width: int, swapped: Sequence[tuple[int, int]] = ()) -> Boxes:
        """Return them, that have no masks, for a picture of ``width`` whose left is now its right.

        ``swapped`` are pairs of points, by number, that change places.
        """
        x1, y1, x2, y2 = self.boxes_xyxy.T
        places = np.arange(self.points.shape[1])
        for left, right in swapped:
            places[[left, right]] = right, left
        points = self.points[:, places]
        points[..., 0] = width - points[..., 0]
        return replace(self, boxes_xyxy=np.stack([width - x2, y1, width - x1, y2], axis=1), points=points)


def average_precision(
    values: Sequence[tuple[Boxes, Boxes]],
    names: Sequence[str],
    kinds: Sequence[str] = ("boxes",),
    sigmas: Sequence[float] = (),
) -> dict[str, float]:
    """Return COCO's ``AP50`` and ``AP`` of pairs (found, truth), one an image; 0 where there is no truth.

    A label is a place in ``names``. Crowds are neither to be found nor wrong to find. Each of the ``kinds``,
    names of `metrics.iou_types.IOU_TYPES`, gives both numbers, with its prefix; ``sigmas`` are those of
    keypoints, where not COCO's.
    """
    keys = pa.array([str(number) for number in range(len(values))], pa.string())
    found = pa.table({"key": keys, "objects": _objects([one for one, _ in values], names, sigmas)})
    truth = pa.table({"image_id": keys, "objects": _objects([one for _, one in values], names, sigmas)})
    numbers: dict[str, float] = {}
    for kind in (IOU_TYPES[name] for name in kinds):
        merged = coco.merge(kind, [coco.partial(kind, found, truth)])
        metrics = coco.result(merged, intervals=False).metrics
        numbers |= {kind.prefix + name: metrics[kind.prefix + name].value or 0.0 for name in ("AP50", "AP")}
    return numbers


def _objects(images: Sequence[Boxes], names: Sequence[str], sigmas: Sequence[float]) -> pa.Array[Any]:
    """Return them as a column of ``objects``, a list an image."""
    boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes_xyxy for one in images)])
    labels = pa.array(np.concatenate([np.zeros(0, np.int64), *(one.labels for one in images)]))
    masks: list[Any] = [mask for one in images for mask in one.masks or [None] * len(one)]
    columns: dict[pa.Field[Any], Any] = {
        pa.field("label", pa.string()): pa.array(names, pa.string()).take(labels),
        pa.field("box", BOX): _structs(boxes, BOX),
        pa.field("mask", MASK): pa.array(masks, MASK),
        keypoints_field(sigmas): _point_lists([one.points for one in images], len(labels)),
    }
    for name in ("scores", "crowd", "areas"):
        values = np.concatenate([np.zeros(0), *(getattr(one, name) for one in images)])
        if len(values):
            columns[pa.field(name.removesuffix("s"), pa.float64())] = pa.array(values)
    structs: Any = pa.StructArray.from_arrays([*columns.values()], fields=[*columns])
    ends: Any = pa.array(np.cumsum([0, *(len(one) for one in images)]), pa.int32())
    lists: pa.Array[Any] = pa.ListArray.from_arrays(ends, structs)
    return lists


def _point_lists(images: Sequence[NDArray[np.float32]], count: int) -> pa.Array[Any]:
    """Return keypoints as a list an object; null where there are none."""
    some = [points.reshape(-1, 3) for points in images]
    if not sum(map(len, some)):
        return pa.nulls(count, pa.list_(KEYPOINT))
    each = next(points.shape[1] for points in images if len(points))
    ends: Any = pa.array(np.arange(count + 1) * each, pa.int32())
    lists: pa.Array[Any] = pa.ListArray.from_arrays(ends, _structs(np.concatenate(some), KEYPOINT))
    return lists


def _structs(values: NDArray[Any], kind: Any) -> pa.Array[Any]:
    """Return the columns of numbers (K, fields) as structs."""
    arrays = [pa.array(column).cast(one.type) for column, one in zip(values.T.copy(), kind, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))
