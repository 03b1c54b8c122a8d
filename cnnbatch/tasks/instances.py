"""Finds the objects in a picture and their outlines: Mask R-CNN (He et al. 2017)."""

from __future__ import annotations

from typing import ClassVar

from cnnbatch.tasks.detect import Detect
from cnnbatch.types import Head


class Instances(Detect):
    """Instance segmentation; every object has a ``mask`` beside its box, COCO's run lengths at full size.

    The masks may overlap. They are those of torchvision's ``paste_masks_in_image`` above 0.5.
    """

    heads: ClassVar[tuple[Head, ...]] = ("masks",)
    trained_to: ClassVar[str] = "instances"
    adapters: ClassVar[tuple[str, ...]] = ()

    name: str = "instances"
    model: str = "maskrcnn_resnet50_fpn_v2"
    """``maskrcnn_resnet50_fpn``, ``maskrcnn_resnet50_fpn_v2``, ``maskrcnn_BACKBONE_fpn`` with a classifier of
    torchvision, or ``mypackage.module:build``."""
    adapter: None = None
