"""Which metrics an output can be judged by, from the columns of its predictions and of its ground truth."""

from __future__ import annotations

from cnnbatch.config.entries import Entries, as_instance
from cnnbatch.evaluation.embedding_metric import EmbeddingMetric
from cnnbatch.metrics import Metric, Schemas
from cnnbatch.metrics.class_maps import MapMetric
from cnnbatch.metrics.classification import ClassificationMetric
from cnnbatch.metrics.coco import BOXES, CocoMetric
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.metrics.localization import LocalizationMetric
from cnnbatch.metrics.object_maps import ObjectMapMetric
from cnnbatch.metrics.panoptic_objects import PanopticMetric
from cnnbatch.metrics.voc import VocMetric

METRICS: Entries[Metric | type[Metric]] = Entries(
    "metrics",
    {
        "classes": ClassificationMetric(),
        "embeddings": EmbeddingMetric(),
        "maps": MapMetric(),
        "localization": LocalizationMetric(),
        "panoptic": PanopticMetric(),
        "boxes": CocoMetric(IOU_TYPES["boxes"]),
        "boxes_alone": CocoMetric(IOU_TYPES["boxes"], BOXES),
        "object_maps": ObjectMapMetric(),
        "voc": VocMetric(),
        "masks": CocoMetric(IOU_TYPES["masks"]),
        "keypoints": CocoMetric(IOU_TYPES["keypoints"]),
    },
    Metric,
)
"""All metrics by name, in the order in which their numbers are shown."""


def metric(name: str) -> Metric:
    """Return the metric of this name; raises KeyError where there is none."""
    return as_instance(METRICS[name])


def judges(schemas: Schemas) -> list[str]:
    """Return the names of the metrics that predictions and ground truth of these schemas can be judged by."""
    return [name for name in METRICS if metric(name).applies(schemas)]


def less_is_better(number: str) -> bool:
    """Say whether the number of this name falls as predictions get better."""
    return any(number.startswith(metric(name).less_is_better) for name in METRICS)
