"""A network that learns colours in a second, and pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from cnnbatch.job import TrainJob
from cnnbatch.models import Network, Preprocessing

SIDE = 16
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


def without_dropout() -> Network:
    """Return the network whose steps do not depend on which worker has which picture."""
    network = build()
    network.module[4] = nn.Identity()  # type: ignore[operator]
    return network


def build() -> Network:
    """Return a network of two convolutions, seeded, for classes of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16, 2),
        )
    how = Preprocessing(resize=SIDE, crop=(SIDE, SIDE))
    return Network(module, how, ("warm", "cold"), weights="tiny", library="tiny 1")


def colours(folder: Path, each: int, classes: tuple[str, ...] = tuple(COLOURS), broken: int = 0) -> Path:
    """Fill folders named by class with noisy pictures; the first ``broken`` of each are no pictures."""
    for place, name in enumerate(classes):
        rng = np.random.default_rng(place)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            path = folder / name / f"{number:04}.png"
            if number < broken:
                path.write_bytes(b"no picture")
                continue
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 50, (20, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def job(photos: Path | str, out: Path | str, train: dict[str, Any] | None = None, **fields: Any) -> TrainJob:
    """Return a training of the tiny network, in this process unless ``fields`` say otherwise."""
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {"name": "classify", "model": "tests.tiny:build", **fields.pop("task", {})},
            "train": {"strategy": "all", "epochs": 4, "batch": 16, "learning_rate": 0.02, **(train or {})},
            "input": fields.pop("input", str(photos)),
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
