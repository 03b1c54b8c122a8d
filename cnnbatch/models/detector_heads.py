"""The layers of torchvision's detectors that have an output for each class: new ones, or some of their rows.

All else of a trained detector stays: also what leads to these layers has been learned from boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from cnnbatch.models.detector import Detector
from cnnbatch.models.heads import like


def with_head_of(detector: Detector, other: Detector) -> Detector:
    """Return the detector with the layers of classes, and the classes, of ``other``; changes its module.

    Both are one architecture. As the tutorial of torchvision has it ("Finetuning from a pretrained model"),
    but for the layers before, which that replaces for SSDlite, RetinaNet and FCOS as well. Of a pose network
    whose points are others in number, their last layer is changed, too.
    """
    layers = {name: layer for name, layer, _ in class_layers(other.module)}
    for name, layer in layers.items():
        detector.module.set_submodule(name, layer)
    if _count_points(detector.module) != _count_points(other.module):
        detector.module.set_submodule(_POINTS, other.module.get_submodule(_POINTS))
    _set_count(detector.module, len(other.classes))
    return replace(detector, classes=other.classes, ids=(), aliases={})


def _count_points(module: nn.Module) -> int | None:
    """Return how many keypoints an object has; None where there are none."""
    layer = dict(module.named_modules()).get(_POINTS)
    return layer.out_channels if isinstance(layer, nn.ConvTranspose2d) else None


def with_labels(detector: Detector, labels: Sequence[int]) -> Detector:
    """Return the detector with the outputs of ``labels`` alone, 0 (the background) first; changes its module.

    ``labels`` are places in ``detector.classes``.
    """
    count = len(detector.classes)
    for name, old, each in list(class_layers(detector.module)):
        new = like(old, len(old.weight) // count * len(labels))
        with torch.no_grad():
            for parameter, tensor in new.named_parameters():
                rows = old.get_parameter(parameter).view(-1, count, each, *tensor.shape[1:])
                tensor.copy_(rows[:, list(labels)].reshape(tensor.shape))
        detector.module.set_submodule(name, new)
    _set_count(detector.module, len(labels))
    names = tuple(detector.classes[label] for label in labels)
    return replace(detector, classes=names, ids=(), aliases={})


def class_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d, int]]:
    """Yield the name, the layer, and how many outputs each class has together; they lie (any, classes, each).

    ``module`` is a `cnnbatch.models.libraries.torchvision_detectors.TorchvisionDetector`.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if name.startswith("module.roi_heads.box_predictor."):
            yield name, layer, 4 if name.endswith("bbox_pred") else 1
        elif name in _ONE_EACH or (name.startswith(_BRANCHES) and _is_last(module, name)):
            yield name, layer, 1


_POINTS = "module.roi_heads.keypoint_predictor.kps_score_lowres"
_HEAD = "module.head.classification_head"
_ONE_EACH = (f"{_HEAD}.cls_logits", "module.roi_heads.mask_predictor.mask_fcn_logits")
_BRANCHES = f"{_HEAD}.module_list."  # of SSD and SSDlite; RetinaNet and FCOS have cls_logits


def _is_last(module: nn.Module, name: str) -> bool:
    """Say whether a layer is the last of its branch: SSD's is one convolution, SSDlite's is several."""
    number, _, rest = name.removeprefix(_BRANCHES).partition(".")
    branch = module.get_submodule(_BRANCHES + number)
    return not rest or (isinstance(branch, nn.Sequential) and rest == str(len(branch) - 1))


def _set_count(module: nn.Module, count: int) -> None:
    """Tell what cuts outputs by class how many there are; R-CNN looks at their shape instead."""
    head = dict(module.named_modules()).get(_HEAD)
    if head is not None:
        setattr(head, "num_columns" if hasattr(head, "num_columns") else "num_classes", count)
