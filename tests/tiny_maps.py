"""Pictures of coloured rectangles with a class at every pixel, a small segmenter, and trainings of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cnnbatch.images import class_map
from cnnbatch.job import TrainJob
from cnnbatch.models import Resizing, Segmenter
from tests import tiny_detections

CLASSES = ("ground", "green", "red")
IGNORED = 255

Map = NDArray[np.uint8]


def drawn(number: int, size: tuple[int, int] = (96, 80)) -> tuple[Image.Image, Map]:
    """Return a noisy picture of ``size`` (width, height) with rectangles, and its map.

    A rectangle's border of one pixel is ignored.
    """
    picture, objects = tiny_detections.drawn(number, size)
    numbers = np.zeros((picture.height, picture.width), np.uint8)
    for name, (x1, y1, x2, y2) in objects:
        numbers[y1:y2, x1:x2] = IGNORED
        numbers[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] = CLASSES.index(name)
    return picture, numbers


def folders(
    root: Path, train: int, validation: int = 0, test: int = 0, size: tuple[int, int] = (96, 80)
) -> Path:
    """Write pictures and masks as CamVid has them: ``train`` beside ``trainannot``, and so on."""
    counts, first = {"train": train, "val": validation, "test": test}, 0
    for part, count in counts.items():
        for number in range(first, first + count):
            picture, numbers = drawn(number, size)
            for folder in (root / part, root / f"{part}annot"):
                folder.mkdir(parents=True, exist_ok=True)
            picture.save(root / part / f"{number:03}.png")
            (root / f"{part}annot" / f"{number:03}.png").write_bytes(class_map.png(numbers))
        first += count
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


class Small(nn.Module):
    """A backbone of two convolutions, and a head; logits at a fourth of the input's size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, classes, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, C, H / 4, W / 4)."""
        logits: Tensor = self.head(self.backbone(pixels))
        return logits


def build(classes: tuple[str, ...] | None = None) -> Segmenter:
    """Return the small segmenter, seeded, for any classes."""
    classes = classes or CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Small(len(classes))
    how = Resizing("own", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), divisor=4, antialias=True)
    return Segmenter(module, how, classes, weights="tiny", library="tiny 1")


def job(folder: Path | str, out: Path | str, train: dict[str, Any] | None = None, **fields: Any) -> TrainJob:
    """Return a training of the small segmenter, in this process, on windows of 48 x 64 pixels."""
    asked = train or {}
    augment = {"crop_size": (48, 64), "scale": (0.8, 1.25), **asked.get("augment", {})}
    settings = {"strategy": "scratch", "epochs": 2, "batch": 8, "learning_rate": 0.01}
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {"name": "segment", "model": "tests.tiny_maps:build", **fields.pop("task", {})},
            "train": {**settings, **asked, "augment": augment},
            "input": fields.pop("input", str(folder)),
            "output": str(out),
            "compute": {
                "pool": "inline",
                "cpus_per_worker": 1,
                "precision": "fp32",
                **fields.pop("compute", {}),
            },
            **fields,
        }
    )
