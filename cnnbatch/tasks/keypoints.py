"""Finds people and the 17 points of their bodies: Mask R-CNN's pose network (He et al. 2017, section 5)."""

from __future__ import annotations

from typing import Any, ClassVar

from cnnbatch.tasks import Task
from cnnbatch.tasks.detect import Detect


class Keypoints(Detect):
    """Poses; every object has ``keypoints`` (x, y, visibility) beside its box, in COCO's order."""

    keypoints: ClassVar[bool] = True
    adapters: ClassVar[tuple[str, ...]] = ()

    name: str = "keypoints"
    model: str = "keypointrcnn_resnet50_fpn"
    """A pose network of torchvision, or ``mypackage.module:build``."""
    adapter: None = None

    recipe: ClassVar[Any] = Task.recipe  # A detector's has no loss for points.
