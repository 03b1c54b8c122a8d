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

from cnnbatch.metrics import coco
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.truth import BOX

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Objects of one picture: ``boxes_xyxy`` float32 (K, 4), ``labels`` int64 (K,); scores of detections.

    ``crowd`` says of a truth which are crowds, bool (K,).
    """

    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @classmethod
    def of_detections(cls, found: Mapping[str, Tensor]) -> Boxes:
        """Return what a detector gives of one picture, see `cnnbatch.models.detector.Detections`."""
        boxes, labels, scores = (found[name].cpu() for name in ("boxes", "labels", "scores"))
        return cls(boxes.float().numpy(), labels.numpy(), scores.float().numpy())

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Boxes:
        """Return some of them, by number or by mask, in that order."""
        return Boxes(
            self.boxes_xyxy[rows],
            self.labels[rows],
            self.scores[rows] if len(self.scores) else self.scores,
            self.crowd[rows] if len(self.crowd) else self.crowd,
        )

    def clipped(self, size: Size) -> tuple[Boxes, NDArray[np.bool_]]:
        """Return them clipped to a picture of ``size``, and which (K,) were kept: those that have an area."""
        limit = np.array([size[1], size[0]] * 2, np.float32)
        boxes = np.clip(self.boxes_xyxy, 0, limit)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept: NDArray[np.bool_] = sides.min(axis=1, initial=np.inf) > 0  # False for what is no number.
        return replace(self, boxes_xyxy=boxes).take(kept), kept

    def resized(self, size: Size, target: Size) -> Boxes:
        """Return them for a picture of ``size`` that is resized to ``target``."""
        ratio = np.array([target[1] / size[1], target[0] / size[0]] * 2, np.float32)
        return replace(self, boxes_xyxy=self.boxes_xyxy * ratio)

    def mirrored(self, width: int) -> Boxes:
        """Return them for a picture of ``width`` whose left is now its right."""
        x1, y1, x2, y2 = self.boxes_xyxy.T
        return replace(self, boxes_xyxy=np.stack([width - x2, y1, width - x1, y2], axis=1))


def average_precision(values: Sequence[tuple[Boxes, Boxes]], names: Sequence[str]) -> dict[str, float]:
    """Return COCO's ``AP50`` and ``AP`` of pairs (found, truth), one an image; 0 where there is no truth.

    A label is a place in ``names``. Crowds are neither to be found nor wrong to find.
    """
    boxes, keys = IOU_TYPES["boxes"], pa.array([str(number) for number in range(len(values))], pa.string())
    found = pa.table({"key": keys, "objects": _objects([one for one, _ in values], names)})
    truth = pa.table({"image_id": keys, "objects": _objects([one for _, one in values], names)})
    metrics = coco.result(coco.merge(boxes, [coco.partial(boxes, found, truth)]), intervals=False).metrics
    return {name: metrics[name].value or 0.0 for name in ("AP50", "AP")}


def _objects(images: Sequence[Boxes], names: Sequence[str]) -> pa.Array[Any]:
    """Return them as a column of ``objects``, a list an image."""
    none = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    some = [none, *images]
    boxes = np.concatenate([one.boxes_xyxy for one in some]).astype(float)
    labels = pa.array(np.concatenate([one.labels for one in some]))
    columns: dict[str, pa.Array[Any]] = {
        "label": pa.array(names, pa.string()).take(labels),
        "box": pa.StructArray.from_arrays([pa.array(side) for side in boxes.T.copy()], fields=list(BOX)),
    }
    for name in ("scores", "crowd"):
        values = np.concatenate([getattr(one, name) for one in some])
        if len(values):
            columns[name.removesuffix("s")] = pa.array(values)
    structs: Any = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
    ends: Any = pa.array(np.cumsum([0, *(len(one) for one in images)]), pa.int32())
    lists: pa.Array[Any] = pa.ListArray.from_arrays(ends, structs)
    return lists
