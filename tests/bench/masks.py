"""Masks of objects: how fast they become run lengths, against pasting each in full and encoding it alone.

python -m tests.bench.masks
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cnnbatch.images.pasted_masks import pasted

OBJECTS = 100
PICTURES = {"COCO's 480 x 640": (480, 640), "a photograph, 3000 x 4000": (3000, 4000)}
ROUNDS = 3
GOAL = 3.0

Floats = NDArray[np.float32]


def objects(size: tuple[int, int], count: int = OBJECTS, seed: int = 0) -> tuple[Floats, Floats]:
    """Return masks (K, 28, 28) with smooth outlines, and boxes with sides of 5 to 50 % of the picture's."""
    rng, whole = np.random.default_rng(seed), np.array([size[1], size[0]])
    coarse = torch.from_numpy(rng.normal(size=(count, 1, 5, 5)).astype(np.float32))
    masks = torch.sigmoid(4 * interpolate(coarse, size=(28, 28), mode="bicubic"))[:, 0].numpy()
    sides = rng.uniform(0.05, 0.5, (count, 2)) * whole
    corners = rng.uniform(0, 1, (count, 2)) * (whole - sides)
    return masks, np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def in_full(masks: Floats, boxes: Floats, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Paste one mask after the other at the picture's size, and have pycocotools encode each."""
    found = []
    for mask, box in zip(masks, boxes, strict=True):
        whole = paste_masks_in_image(torch.from_numpy(mask[None, None]), torch.from_numpy(box[None]), size)
        encoded = coco.encode(np.asfortranarray((whole[0, 0] > 0.5).numpy().astype(np.uint8)))
        found.append({"size": list(encoded["size"]), "counts": encoded["counts"].decode()})
    return found


def main() -> None:
    """Print both times of each picture, and their ratio."""
    torch.set_num_threads(1)
    console, table = Console(), Table("picture", "in full ms", "here ms", "times as fast", "the same")
    table.title = (
        f"{OBJECTS} masks of one picture as run lengths; goal: {GOAL:g} times as fast, the same strings"
    )
    for name, size in PICTURES.items():
        masks, boxes = objects(size)
        ways = [lambda m=masks, b=boxes, s=size, way=way: way(m, b, s) for way in (in_full, pasted)]
        (slow, expected), (fast, found) = (_best(way) for way in ways)
        table.add_row(
            name, f"{1e3 * slow:.0f}", f"{1e3 * fast:.0f}", f"{slow / fast:.1f}", str(found == expected)
        )
    console.print(table)


def _best(way: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least processor time of some rounds, and what came of it."""
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        found = way()
        times.append(time.process_time() - started)
    return min(times), found


if __name__ == "__main__":
    main()
