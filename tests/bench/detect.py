"""End-to-end speed of detection on photographs of COCO's kind, against the ceiling of its own stages.

python -m tests.bench.detect [IMAGES]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.measuring import CORES, alone, photographs, show_ceiling, stages, steady

MODELS = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")
COUNT = 500
SAMPLE = 64  # photographs on which the stages are measured
SHARD = 50
THIS = "tests.bench.detect"


def job(model: str, photos: str, out: str) -> Any:
    """Return the job that is measured. Random weights are sure of nothing, as real ones of most anchors."""
    from cnnbatch.job import MapJob

    return MapJob.model_validate(
        {
            "task": {"name": "detect", "model": model, "weights": "random", "score_threshold": 0.05},
            "input": {"url": photos, "shard_size": SHARD},
            "output": out,
            "compute": {"pool": "ray", "workers": CORES},
        }
    )


def main(count: int = COUNT) -> None:
    """Measure each detector on ``count`` photographs and print it."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number, path in enumerate(islice(photographs(("coco-sample",)), count)):
            shutil.copy(path, photos / f"{number:06}.jpg")
        for model in MODELS:
            ours = alone(THIS, model, str(photos), f"{folder}/{model}")
            found = stages(job(model, str(photos), "unused"), ours["settings"], SAMPLE)
            show_ceiling(console, model, [found], ours)
            console.print(f"whole:   {ours['images'] / ours['seconds']:.1f} images/s, start-up included")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(steady(job(*sys.argv[1:]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT)
