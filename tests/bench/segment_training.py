"""A segmenter's training step against the forward and backward pass of its network alone.

    python -m tests.bench.segment_training

Everything that a step does is counted, on one core: reading and decoding pictures and maps, augmentation,
collating, the loss, the optimiser and the moving average. Steps alternate with the network alone, so that the
machine's drift changes neither; the ratio is of the processor's time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console

from cnnbatch.inference.worker import malloc
from cnnbatch.job import TrainJob
from tests import tiny_maps
from tests.bench.measuring import SHARED, alone

THIS = "tests.bench.segment_training"
MODELS = {
    "pyramid_mobilenet_v2": (256, 320),
    "lraspp_mobilenet_v3_large": (256, 320),
    "fcn_resnet50": (128, 160),
}
BATCH, WARM, STEPS = 6, 3, 12


def job(model: str, pictures: str, out: str) -> TrainJob:
    """Return a training of all of a network, with all augmentation and two losses."""
    augment = {"crop_size": MODELS[model], "scale": [0.6, 2.0], "aspect": 0.1, "colour": 0.3}
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {"name": "segment", "model": model},
            "train": {
                "strategy": "scratch",
                "epochs": 1,
                "batch": BATCH,
                "test": 0.0,
                "ema": 0.998,
                "loss": {"dice": 0.5, "balance": 0.5},
                "augment": {**augment, "gamma": 1.5, "cast": 0.1},
            },
            "input": pictures,
            "output": out,
            "compute": {"pool": "inline", "cpus_per_worker": 1},
        }
    )


def pictures_in(folder: str) -> str:
    """Return CamVid beside the checkout, else made pictures of its size."""
    camvid = SHARED / "data" / "camvid"
    if camvid.is_dir():
        return str(camvid)
    return str(tiny_maps.folders(Path(folder) / "made", 60, 6, size=(480, 360)))


def measured(model: str, pictures: str, out: str) -> dict[str, float]:
    """Return the processor's milliseconds an image of a step, of its loading, and of the network alone."""
    from cnnbatch.inference.worker.readahead import DecodeOptions
    from cnnbatch.output.folder import Output
    from cnnbatch.sources import open_source
    from cnnbatch.storage import Storage
    from cnnbatch.training.data.dataset import collect
    from cnnbatch.training.data.loader import Loader
    from cnnbatch.training.data.splits import parts_of
    from cnnbatch.training.distributed import Team
    from cnnbatch.training.loop import Loop, Plan
    from cnnbatch.training.worker import Silent, precision_for

    malloc.keep_freed_memory()
    torch.set_num_threads(1)
    spec = job(model, pictures, out)
    parts = parts_of(spec, Storage())
    collected = collect(spec, parts, Output(out, Storage()))
    recipe = spec.task.recipe(spec.train, collected.data)
    source = open_source(parts.train, Storage())
    loader = Loader(recipe, source, collected.train, 0, 0, DecodeOptions(1, BATCH))
    plan = Plan(spec.train, 1, 1e-3, "cpu", precision_for("auto", "cpu", recipe.module))
    loop = Loop(recipe, plan, loader, loader, Team(), Silent())
    seconds, images, begun = dict.fromkeys(("step", "network", "inputs"), 0.0), 0, 0.0
    recipe.module.train()
    for number, examples in enumerate(loader.training(0, BATCH)):
        if number == WARM:
            seconds, images, begun = dict.fromkeys(seconds, 0.0), 0, time.process_time()
        if number == WARM + STEPS:
            break
        at = [time.thread_time()]
        loop._step(0, number, examples)
        at.append(time.thread_time())
        inputs = recipe.on_device(loop._batch(examples), Random(0)).inputs
        at.append(time.thread_time())
        _run_network(loop, inputs)
        at.append(time.thread_time())
        for name, (before, after) in zip(("step", "inputs", "network"), pairwise(at), strict=True):
            seconds[name] += after - before
        images += len(examples)
    whole = time.process_time() - begun
    loader.close()
    loading = {"loading": whole - sum(seconds.values())}  # What other threads do, and the loop between steps.
    return {name: 1000 * value / images for name, value in (seconds | loading).items()}


def _run_network(loop: Any, inputs: Sequence[torch.Tensor]) -> None:
    """Run the network alone forward and backward."""
    with loop._autocast():
        outputs = loop._module(*inputs)
    torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])
    loop._optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Measure and print."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        pictures = pictures_in(folder)
        for model, size in MODELS.items():
            found = alone(THIS, "measured", model, pictures, f"{folder}/{model}")
            whole = found["loading"] + found["step"]
            console.print(
                f"{model} at {size[0]} x {size[1]}, batch {BATCH}, one core: a step {whole:.1f} ms an image, "
                f"of which {found['loading']:.1f} to load; the network alone {found['network']:.1f} ms: "
                f"{found['network'] / whole:.2f} of the step"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["measured"]:
        print(json.dumps(measured(*sys.argv[2:])))
    else:
        main()
