"""Small Mask R-CNNs and pictures of discs and bars with their masks, as COCO has them; trainings on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from torch import nn

from cnnbatch.images import rle
from cnnbatch.job import TrainJob
from cnnbatch.models import Detector, Resizing

SIDE = 64
MODEL = "maskrcnn_mobilenet_v2_fpn"
CLASSES = ("bar", "disc")
COLOURS = {"bar": (40, 60, 210), "disc": (210, 60, 40)}

Mask = NDArray[np.bool_]
Drawn = list[tuple[str, Mask]]
"""The class and the mask (H, W) of each object; no two overlap."""


def drawn(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[Image.Image, Drawn]:
    """Return a noisy picture of ``size`` (height, width) with one or two discs or bars."""
    rng, (height, width) = np.random.default_rng(number), size
    pixels = rng.integers(95, 135, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    found = Drawn()
    for place in range(1 + number % 2):
        name = CLASSES[(number // 2 + place) % 2]
        across, down = x - width * (0.25 + 0.5 * place), y - height * rng.uniform(0.35, 0.65)
        if name == "disc":
            mask = across**2 + down**2 < (rng.uniform(0.14, 0.2) * width) ** 2
        else:
            slope = rng.uniform(0.3, 0.8)
            mask = (np.abs(down - slope * across) < 0.08 * height) & (np.abs(across) < 0.2 * width)
        pixels[mask] = COLOURS[name]
        found.append((name, mask))
    return Image.fromarray(pixels), found


def box_xywh(mask: Mask) -> list[int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def run_lengths(mask: Mask) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def inside(mask: dict[str, Any]) -> Mask:
    """Return the pixels of run lengths."""
    found = rle.pixels(mask)
    assert found is not None
    return found


def write_coco(
    root: Path,
    count: int,
    size: tuple[int, int] = (SIDE, SIDE),
    first: int = 0,
    names: Sequence[str] = CLASSES,
) -> Path:
    """Write pictures and a file of COCO's beside them; return the file. ``names`` are those of `CLASSES`."""
    root.mkdir(parents=True)
    called = dict(zip(CLASSES, names, strict=True))
    images, annotations = [], list[dict[str, Any]]()
    for number in range(first, first + count):
        picture, objects = drawn(number, size)
        picture.save(root / f"{number:03}.png")
        images.append({"id": number, "file_name": f"{number:03}.png", "width": size[1], "height": size[0]})
        for name, mask in objects:
            fields = {"bbox": box_xywh(mask), "area": int(mask.sum()), "iscrowd": 0}
            fields |= {"segmentation": run_lengths(mask), "category_id": CLASSES.index(name) + 1}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **fields})
    listed = [{"id": place, "name": called[name]} for place, name in enumerate(CLASSES, 1)]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": listed}))
    return path


def detector() -> Detector:
    """Return a Mask R-CNN with random weights that sees objects, with few proposals, which is quick."""
    from torchvision.models import resnet18
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

    from cnnbatch.models.libraries.torchvision_detectors import TorchvisionDetector

    backbone = _resnet_fpn_extractor(resnet18(weights=None), 5)
    module = MaskRCNN(
        backbone, 3, rpn_post_nms_top_n_test=20, rpn_pre_nms_top_n_test=100, box_detections_per_img=5
    )
    settle(module)
    return Detector(
        TorchvisionDetector(module, ["masks"]),
        Resizing("sides", (64, 96), divisor=32),
        ("__background__", *CLASSES),
    )


class Colours(nn.Module):
    """Finds what has a class's colour, and the same less surely a little beside, as the other class."""

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        pairs = zip(batch, sizes.tolist(), strict=True)
        return [self._found(pixels[:, :height, :width]) for pixels, (height, width) in pairs]

    def _found(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        red, _, blue = pixels.unbind()
        boxes, masks, labels, scores = [], [], [], []
        for place, inside in enumerate((blue - red > 0.3, red - blue > 0.3)):
            rows, columns = (inside.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
            if not rows:
                continue
            box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)
            small = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()[None, None]
            mask = torch.nn.functional.interpolate(small, (28, 28), mode="bilinear")[0]
            share = float(inside.float().mean())
            boxes += [box, box + torch.tensor([3.0, 1.0, 5.0, 2.0])]
            masks += [mask, mask]
            labels += [1 + place, 2 - place]
            scores += [0.5 + share, share]
        order = torch.tensor(scores).argsort(descending=True)
        found = {
            "boxes": torch.stack([torch.zeros(4), *boxes])[1:],
            "masks": torch.stack([torch.zeros((1, 28, 28)), *masks])[1:],
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores),
        }
        return {name: value[order] for name, value in found.items()}


def seeing() -> Detector:
    """Return a network that sees colours."""
    return Detector(Colours(), Resizing("sides", (96, 200)), ("__background__", *CLASSES))


def settle(module: nn.Module) -> None:
    """Give the normalisations what they see of noise, and the masks an outline."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        backbone = module.get_submodule("backbone").train()
        backbone(torch.randn((4, 3, 96, 96), generator=torch.Generator().manual_seed(0)))
        logits: Any = module.get_submodule("roi_heads.mask_predictor.mask_fcn_logits")
        logits.weight.mul_(200)
    module.eval()


def job(
    pictures: Path | str, out: Path | str, train: dict[str, Any] | None = None, **fields: Any
) -> TrainJob:
    """Return a training of a small Mask R-CNN from random weights, in this process."""
    task = {"name": "instances", "model": MODEL, "weights": "random", "size": (SIDE, SIDE)}
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {**task, **fields.pop("task", {})},
            "train": {"strategy": "scratch", "epochs": 2, "batch": 8, **(train or {})},
            "input": str(pictures),
            "output": str(out),
            "compute": {"pool": "inline", "cpus_per_worker": 1, "precision": "fp32"},
            **fields,
        }
    )
