"""Pictures of faces of discs with three known points, as COCO has them; a smaller head, trainings on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.models.detection import keypoint_rcnn

from cnnbatch.job import TrainJob

SIDE = 64
MODEL = "keypointrcnn_mobilenet_v2_fpn"
POINTS = ("left eye", "right eye", "mouth")
"""Both eyes look alike: which is which is told by where they are."""
SIGMAS = (0.04, 0.04, 0.06)
SWAPPED = ((0, 1),)

Points = list[tuple[float, float]]


def drawn(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[Image.Image, list[float], Points]:
    """Return a noisy picture of ``size`` (height, width) with a face, its box (x, y, w, h) and points."""
    rng, (height, width) = np.random.default_rng(number), size
    pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    radius = rng.uniform(0.22, 0.3) * min(size)
    centre = np.array([rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)])
    angle = rng.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = [centre + turn @ (radius * np.array(one)) for one in ((-0.4, -0.3), (0.4, -0.3), (0.0, 0.5))]
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = (230, 200, 90)
    for (across, down), colour in zip(places, ((30, 30, 30), (30, 30, 30), (200, 30, 30)), strict=True):
        pixels[(x - across) ** 2 + (y - down) ** 2 < (0.2 * radius) ** 2] = colour
    box = [centre[0] - radius, centre[1] - radius, 2 * radius, 2 * radius]
    return Image.fromarray(pixels), box, [(float(across), float(down)) for across, down in places]


def write_coco(root: Path, count: int) -> Path:
    """Write pictures and a file of COCO's beside them; return the file."""
    root.mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        picture, box, points = drawn(number)
        picture.save(root / f"{number:03}.png")
        images.append({"id": number, "file_name": f"{number:03}.png", "width": SIDE, "height": SIDE})
        flat = [value for across, down in points for value in (across, down, 2)]
        fields = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": 1, "keypoints": flat}
        annotations.append({"id": number + 1, "image_id": number, "num_keypoints": len(points), **fields})
    categories = [{"id": 1, "name": "face", "keypoints": POINTS}]
    path = root / "keypoints.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def with_a_small_head(patch: pytest.MonkeyPatch) -> None:
    """Have pose networks two layers of 64 channels for points: torchvision's eight of 512 take long."""
    heads, predictor = keypoint_rcnn.KeypointRCNNHeads, keypoint_rcnn.KeypointRCNNPredictor
    patch.setattr(keypoint_rcnn, "KeypointRCNNHeads", lambda channels, layers: heads(channels, (64, 64)))
    patch.setattr(keypoint_rcnn, "KeypointRCNNPredictor", lambda channels, points: predictor(64, points))


def job(
    pictures: Path | str, out: Path | str, train: dict[str, Any] | None = None, **fields: Any
) -> TrainJob:
    """Return a training of a small pose network from random weights, in this process."""
    task = {"name": "keypoints", "model": MODEL, "weights": "random", "size": (SIDE, SIDE)}
    points = {"sigmas": SIGMAS, "swapped": SWAPPED}
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {**task, **points, **fields.pop("task", {})},
            "train": {"strategy": "scratch", "epochs": 2, "batch": 8, **(train or {})},
            "input": str(pictures),
            "output": str(out),
            "compute": {"pool": "inline", "cpus_per_worker": 1, "precision": "fp32"},
            **fields,
        }
    )
