"""Chooses a YOLO's detections among its boxes: a score at least, and no better box of the class nearby."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import batched_nms

from cnnbatch.models.detector import Detections

_MOST_CANDIDATES = 30_000  # boxes of one picture that go into suppression


def detections(
    boxes_xyxy: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, most: int | None
) -> Detections:
    """Choose among one picture's boxes (R, 4) and scores (R, C), the best first.

    A box of every class whose score is above ``score_threshold`` is a detection of its own; those that
    overlap a better one of their class by an IoU above ``iou_threshold`` go; of the rest the ``most``
    best stay.
    """
    # Broken weights can give boxes without end; they are no detections.
    found = (scores > score_threshold) & boxes_xyxy.isfinite().all(dim=1, keepdim=True)
    row, label = found.nonzero(as_tuple=True)
    # A box is only ever removed by a better one, so that the worst can go first: with real weights a
    # picture has a few thousand, and broken ones must not cost hours.
    order = scores[row, label].argsort(descending=True, stable=True)[:_MOST_CANDIDATES]
    row, label = row[order], label[order]
    kept = _suppressed(boxes_xyxy[row], scores[row, label], label, iou_threshold)[:most]
    row, label = row[kept], label[kept]
    return {"boxes": boxes_xyxy[row], "scores": scores[row, label], "labels": label}


def _suppressed(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return which of the boxes (K, 4), best first, no better one of its label overlaps, in their order."""
    if not len(boxes_xyxy):
        return labels
    # To tell classes apart, batched_nms may move each by more than the largest coordinate: below zero they
    # would meet nevertheless, and float32 would be too coarse so far out. MPS has nothing finer.
    exact = boxes_xyxy if boxes_xyxy.device.type == "mps" else boxes_xyxy.double()
    kept: Tensor = batched_nms(exact - exact.min(), scores.to(exact), labels, threshold)
    return kept.sort().values  # equal scores stay in order
