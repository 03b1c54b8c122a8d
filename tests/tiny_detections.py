"""Pictures of coloured rectangles with their boxes, as PASCAL VOC and as COCO, and trainings on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cnnbatch.job import TrainJob

SIDE = 64
MODEL = "ssdlite320_mobilenet_v3_large"
COLOURS = {"green": (50, 180, 60), "red": (200, 50, 40)}

Drawn = list[tuple[str, tuple[int, int, int, int]]]
"""The class and the (x1, y1, x2, y2) of each rectangle."""


def drawn(number: int, size: tuple[int, int] = (96, 80)) -> tuple[Image.Image, Drawn]:
    """Return a noisy picture of ``size`` (width, height) with up to two rectangles; every fifth has none."""
    rng = np.random.default_rng(number)
    width, height = size
    noise = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    picture, found = Image.fromarray(noise), Drawn()
    names = [] if number % 5 == 4 else [("green", "red")[number % 2], "red"][: 1 + number % 3 // 2]
    for place, name in enumerate(names):
        wide, high = rng.integers(width // 4, width // 3), rng.integers(height // 3, height // 2)
        left = place * (width // 2) + int(rng.integers(0, width // 2 - wide))
        top = int(rng.integers(0, height - high))
        box = left, top, left + int(wide), top + int(high)
        ImageDraw.Draw(picture).rectangle((*box[:2], box[2] - 1, box[3] - 1), COLOURS[name])
        found.append((name, box))
    return picture, found


def voc(root: Path, count: int, without: Sequence[int] = ()) -> Path:
    """Write a tree of PASCAL VOC; pictures of the numbers ``without`` have no XML file."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for number in range(count):
        picture, objects = drawn(number)
        picture.save(root / "JPEGImages" / f"{number:03}.jpg", quality=95)
        if number not in without:
            (root / "Annotations" / f"{number:03}.xml").write_text(_xml(picture, objects))
    return root


def _xml(picture: Image.Image, objects: Drawn) -> str:
    size = f"<size><width>{picture.width}</width><height>{picture.height}</height></size>"
    return f"<annotation>{size}{''.join(_object(*one) for one in objects)}</annotation>"


def _object(name: str, box: tuple[int, int, int, int]) -> str:
    x1, y1, x2, y2 = box  # VOC counts the first pixel as 1, and the last is inside.
    sides = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{sides}</bndbox></object>"


def coco(root: Path, count: int, categories: Sequence[str] = ("things", "red", "green")) -> Path:
    """Write pictures and a file of COCO's beside them; return the file. Its first category has no object."""
    root.mkdir(parents=True)
    ids = {name: number for number, name in enumerate(categories, 1)}
    images, annotations = [], list[dict[str, Any]]()
    for number in range(count):
        picture, objects = drawn(number)
        picture.save(root / f"{number:03}.png")
        images.append(
            {"id": number, "file_name": f"{number:03}.png", "width": picture.width, "height": picture.height}
        )
        for name, (x1, y1, x2, y2) in objects:
            box = [x1, y1, x2 - x1, y2 - y1]
            fields = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "category_id": ids[name]}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **fields})
    listed = [{"id": number, "name": name} for name, number in ids.items()]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": listed}))
    return path


def job(
    pictures: Path | str, out: Path | str, train: dict[str, Any] | None = None, **fields: Any
) -> TrainJob:
    """Return a training of a small detector from random weights, in this process, at 64 pixels."""
    task = {"name": "detect", "model": MODEL, "weights": "random", "size": (SIDE, SIDE)}
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {**task, **fields.pop("task", {})},
            "train": {"strategy": "scratch", "epochs": 2, "batch": 16, **(train or {})},
            "input": str(pictures),
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
