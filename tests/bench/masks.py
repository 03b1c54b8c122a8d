"""Masks of objects: how fast they become run lengths, and what they take in memory and in Parquet.

Speed is against pasting each mask in full and having pycocotools encode it, in one process; memory is that of
a process that makes the rows of many pictures; size is against one 8-bit PNG a mask.

python -m tests.bench.masks
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cnnbatch.images import rle
from cnnbatch.images.pasted_masks import pasted
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.models import Detector, Resizing
from cnnbatch.output.part import PartSpool
from cnnbatch.tasks.detect import ObjectDetector
from cnnbatch.tasks.instances import Instances
from cnnbatch.types import Image, ImageRef, Prepared, Runtime
from tests.bench.measuring import alone

OBJECTS = 100
PHOTOGRAPH = (3000, 4000)
PICTURES = {"COCO's 480 x 640": (480, 640), "a photograph, 3000 x 4000": PHOTOGRAPH}
ROUNDS = 3
FASTER, SMALLER = 3.0, 5.0
THIS = "tests.bench.masks"

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


class Given(nn.Module):
    """A detector that finds nothing: what it is said to have found is given to `rows` directly."""

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """Return none."""
        return []


def rows(pictures: int, count: int) -> Iterator[Any]:
    """Yield the rows of photographs with ``count`` objects each, eight photographs at a time."""
    model = ObjectDetector(
        Instances(model="given"), Detector(Given(), Resizing("whole", (1, 1)), ("thing",)), Runtime("cpu")
    )
    shown = torch.zeros((3, 1, 1), dtype=torch.uint8)
    for start in range(0, pictures, 8):
        some = range(start, min(start + 8, pictures))
        images = [Image(ImageRef(f"{number}.jpg", ""), shown, PHOTOGRAPH) for number in some]
        outputs = [[_found(*objects(PHOTOGRAPH, count, number))] for number in some]
        yield model.rows(images, [[Prepared(shown, PHOTOGRAPH)]] * len(some), outputs)


def _found(masks: Floats, boxes: Floats) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.from_numpy(boxes),
        "scores": torch.linspace(1, 0, len(boxes)),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "masks": torch.from_numpy(masks[:, None]),
    }


def written(pictures: int, count: int) -> dict[str, float]:
    """Write the rows into a part; return its bytes, and the most memory that the process took, in MB."""
    torch.set_num_threads(1)
    schema = Instances(model="given").columns()
    with PartSpool(schema) as spool:
        for some in rows(pictures, count):
            spool.write(some)
        size = spool.finish({}).stat().st_size
    return {"part_bytes": size, "peak_mb": peak_rss_bytes() / 2**20}


def show_speed(console: Console) -> None:
    """Print both times of each picture, and their ratio."""
    table = Table("picture", "in full ms", "here ms", "times as fast", "the same")
    table.title = f"{OBJECTS} masks of one picture as run lengths; goal: {FASTER:g} times as fast"
    for name, size in PICTURES.items():
        masks, boxes = objects(size)
        ways = [lambda m=masks, b=boxes, s=size, way=way: way(m, b, s) for way in (in_full, pasted)]
        (slow, expected), (fast, found) = (_best(way) for way in ways)
        same = str(found == expected)
        table.add_row(name, f"{1e3 * slow:.0f}", f"{1e3 * fast:.0f}", f"{slow / fast:.1f}", same)
    console.print(table)


def show_memory(console: Console) -> None:
    """Print how much memory a process takes for few and for many objects and pictures."""
    table = Table(
        "photographs", "objects each", "most memory MB", title="rows of instances, 12 million pixels"
    )
    for pictures, count in ((16, 1), (16, OBJECTS), (160, OBJECTS)):
        found = alone(THIS, str(pictures), str(count))
        table.add_row(str(pictures), str(count), f"{found['peak_mb']:.0f}")
    console.print(table)


def show_size(console: Console) -> None:
    """Print what masks take in a part, against one PNG file a mask."""
    part = alone(THIS, "8", str(OBJECTS))["part_bytes"]
    whole = sum(_png_bytes(one["mask"]) for some in rows(8, OBJECTS) for one in _flat(some))
    console.print(
        f"masks of {8 * OBJECTS} objects in 8 photographs: {whole / 2**20:.1f} MB as PNG files, "
        f"{part / 2**20:.1f} MB in Parquet with label, score and box: {whole / part:.1f} times smaller; "
        f"goal: {SMALLER:g}"
    )


def _flat(some: Any) -> list[dict[str, Any]]:
    return [one for row in some.to_pylist() for one in row["objects"]]


def _png_bytes(mask: dict[str, Any]) -> int:
    inside, sink = rle.pixels(mask), io.BytesIO()
    assert inside is not None
    Pillow.fromarray(np.where(inside, np.uint8(255), np.uint8(0))).save(sink, "PNG")
    return sink.tell()


def _best(way: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least processor time of some rounds, and what came of it."""
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        found = way()
        times.append(time.process_time() - started)
    return min(times), found


def main() -> None:
    """Print all of it."""
    torch.set_num_threads(1)
    console = Console()
    for show in (show_speed, show_memory, show_size):
        show(console)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(written(*map(int, sys.argv[1:]))))
    else:
        main()
