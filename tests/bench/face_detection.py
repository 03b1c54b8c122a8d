"""How fast MTCNN finds faces, beside facenet-pytorch's own code called one picture at a time.

Both have the same weights, one thread and the allocator as the job's workers set it, find the same faces in
the same decoded pictures, and take turns; what counts is the processor's time.

    python -m tests.bench.face_detection [PICTURES]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN as FacenetPytorch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn.functional import pad

from cnnbatch.inference.worker.malloc import keep_freed_memory
from cnnbatch.models.choice import Choice
from cnnbatch.models.face_detectors import build_face_detector
from tests.bench.measuring import SHARED

FOLDERS = {"LFW, portraits": "lfw/lfw", "COCO, mixed sizes": "coco-sample/images"}
BATCH = 8
ROUNDS = 3


def pictures(folder: Path, count: int) -> list[NDArray[np.uint8]]:
    """Return ``count`` pictures from all over a folder."""
    paths = sorted(folder.rglob("*.jpg"))
    chosen = paths[:: max(1, len(paths) // count)][:count]
    return [np.asarray(Image.open(path).convert("RGB")) for path in chosen]


def batches(found: Sequence[NDArray[np.uint8]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the pictures on canvases, `BATCH` at a time, in memory as the job's workers give them."""
    made = []
    for first in range(0, len(found), BATCH):
        some = [torch.tensor(one) for one in found[first : first + BATCH]]
        sizes = torch.tensor([one.shape[:2] for one in some])
        height, width = sizes.amax(0).tolist()
        padded = [pad(one, (0, 0, 0, width - one.shape[1], 0, height - one.shape[0])) for one in some]
        made.append((torch.stack(padded).permute(0, 3, 1, 2), sizes))
    return made


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Return the median seconds of processor time that each takes, after one pass that warms up."""
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(ROUNDS + 1):
        for one, taken in zip((ours, theirs), seconds, strict=True):
            started = time.process_time()
            one()
            if turn:
                taken.append(time.process_time() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def measured(folder: Path, count: int) -> list[str]:
    """Return the cells of a folder's row."""
    found = pictures(folder, count)
    batched = batches(found)
    module = build_face_detector(Choice("mtcnn")).module
    reference = FacenetPytorch(keep_all=True)
    faces: dict[str, int] = {}

    def ours() -> None:
        faces["ours"] = sum(len(one["scores"]) for batch in batched for one in module(*batch))

    def theirs() -> None:
        boxes = [reference.detect(one)[0] for one in found]
        faces["theirs"] = sum(len(one) for one in boxes if one is not None)

    with torch.inference_mode():
        seconds = in_turns(ours, theirs)
    assert faces["ours"] == faces["theirs"], faces
    milliseconds = [f"{1000 * one / len(found):.1f}" for one in seconds]
    return [str(len(found)), str(faces["ours"]), *milliseconds, f"{seconds[1] / seconds[0]:.2f}"]


def main(count: int = 32) -> None:
    """Print the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console = Console()
    table = Table(
        "pictures", "", "faces", "ours, ms", "facenet-pytorch, ms", "ratio", title="MTCNN, one thread"
    )
    for name, folder in FOLDERS.items():
        if not (SHARED / "data" / folder).is_dir():
            console.print(f"{name}: no pictures beside the checkout")
            continue
        table.add_row(name, *measured(SHARED / "data" / folder, count))
    console.print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
