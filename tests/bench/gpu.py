"""Whole jobs on a CUDA device, each against the ceiling of its own stages: what `cnnbatch bench` prints.

To beat, for ResNet-18: 382 images/s on a GPU of the L4 class, which is what Daft has published. Random
weights are as fast as real ones. It says at once what it needs where no device is there.

    python -m tests.bench.gpu [MODEL ...]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch

from tests.bench.measuring import ROOT, photographs

MODELS: Mapping[str, str] = {
    "resnet18": "classify",
    "resnet50": "classify",
    "fasterrcnn_resnet50_fpn": "detect",
}
PHOTOGRAPHS = 4000


def main(models: list[str]) -> None:
    """Measure each model on photographs and print it."""
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; `make bench` measures on the CPU")
    print(f"on {torch.cuda.get_device_name()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(islice(photographs(), PHOTOGRAPHS)):
            shutil.copy(path, Path(folder) / f"{number:06}.jpg")
        for model in models:
            print(f"\n{model}", flush=True)
            task = [f"task.model={model}", "task.weights=random"]
            command = [
                sys.executable,
                "-m",
                "cnnbatch",
                "bench",
                MODELS[model],
                f"input={folder}",
                *task,
            ]
            subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
