"""Outputs of ``three_views`` with small networks that need no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cnnbatch
from tests import tiny_instances

SIZE = (64, 96)
CLASSES = ["background", *tiny_instances.CLASSES]


def output(folder: Path, images: int = 4, name: str = "out", **task: Any) -> Path:
    """Run ``three_views`` over pictures with COCO's ground truth in ``folder/photos``; return the output.

    The detector and the instance network see colours, the segmenter is of random convolutions.
    """
    photos = folder / "photos"
    truth = photos / "instances.json" if photos.exists() else tiny_instances.write_coco(photos, images, SIZE)
    seeing = {"model": "tests.tiny_instances:seeing", "weights": "random"}
    segment = {"model": "tests.tiny_segmenter:convolutions", "classes": CLASSES}
    cnnbatch.run(
        "three_views",
        quiet=True,
        task={"detect": seeing, "segment": segment, "instances": seeing, **task},
        input=str(truth),
        output=str(folder / name),
        compute={"pool": "inline", "precision": "fp32", "backend": "eager"},
    )
    return folder / name
