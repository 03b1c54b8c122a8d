"""Forward passes alone: what is chosen by measuring, against every way tried by hand and a plain eager loop.

One worker with one thread, as each of a CPU's workers is; processor time, so that ratios hold on a busy
machine. Every way by hand is timed in turns with the others, and the best of its rounds counts.

    python -m tests.bench.forward [MODEL ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table

from cnnbatch.inference.autotune.candidates import TuningCandidate, candidates
from cnnbatch.inference.autotune.measure import measure
from cnnbatch.inference.autotune.store import LARGE_SAMPLE, SAMPLE
from cnnbatch.inference.messages import TuningSample
from cnnbatch.inference.worker.devices import find_device, has_bf16
from cnnbatch.inference.worker.journal import Journal
from cnnbatch.inference.worker.malloc import keep_freed_memory
from cnnbatch.inference.worker.settings import Settings, choose
from cnnbatch.inference.worker.worker import Worker
from cnnbatch.job import MapJob
from cnnbatch.models.runtime.backends import Unavailable
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Model, Shard
from tests.bench.measuring import SETS, SHARED, alone, photographs

MODELS: Mapping[str, str] = {
    "resnet50": "classify",
    "mobilenet_v2": "classify",
    "vgg16": "classify",
    "efficientnet_b0": "classify",
    "ssdlite320_mobilenet_v3_large": "detect",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "detect",
}
COUNTS: Mapping[str, int] = {"classify": LARGE_SAMPLE, "detect": SAMPLE}
"""Photographs of a sample."""
ROUNDS = 4
TIMED = 32
"""Images in one round."""
THIS, EAGER = "tests.bench.forward", "eager-loop"
MANY = 10**6
"""Images that the measured job is said to have: nothing is too dear to try."""


class Workers:
    """Makes workers of one job over a folder of photographs, as a process of the pool does."""

    def __init__(self, spec: MapJob, folder: str) -> None:
        self.spec, self._folder = spec, folder
        self._source = open_source(spec.input, Storage())
        self.refs = tuple(self._source.refs())

    def make(self, settings: Settings, model: Model | None = None) -> Worker:
        """Return a worker with these settings."""
        journal = Journal(Path(self._folder) / f"journal-{time.monotonic_ns()}")
        return Worker(self.spec, self._source, Output(self._folder, Storage()), journal, settings, model)


def job(model: str, photos: str, out: str) -> MapJob:
    """Return the job; real weights where they lie beside the checkout, else random ones."""
    real = SHARED / "weights" / f"{model}.safetensors"
    return MapJob.model_validate(
        {
            "task": {
                "name": MODELS[model],
                "model": model,
                "weights": str(real) if real.exists() else "random",
            },
            "input": photos,
            "output": out,
            "compute": {"pool": "ray"},
        }
    )


def by_hand(workers: Workers, plain: Settings) -> dict[str, float]:
    """Return the images a second of every way that is there, the best of interleaved rounds."""
    ways = candidates(
        plain.type, has_bf16(find_device("auto")), workers.spec.task.precisions, workers.spec.task.backends
    )
    made: dict[str, Worker] = {}
    for way in dict.fromkeys([TuningCandidate("fp32", "eager"), *ways]):
        settings = replace(plain, precision=way.precision, backend=way.backend, tf32=way.tf32)
        try:
            made[name_of(settings)] = workers.make(settings)
        except Unavailable as error:
            print(f"  {name_of(settings)}: {error}", flush=True)
    rates = dict.fromkeys(made, 0.0)
    for _ in range(ROUNDS):
        for name, worker in made.items():
            rates[name] = max(rates[name], pace(worker, workers.refs[:TIMED]))
    for worker in made.values():
        worker.close()
    return rates


def pace(worker: Worker, refs: tuple[ImageRef, ...]) -> float:
    """Return the images a second of the forward pass."""
    worker.settings.apply()
    return len(refs) / sum(one.forward_s for one in worker.outputs(Shard(0, refs), clock()))


def clock() -> Any:
    """Return what tells the time of a forward pass."""
    return time.process_time if find_device("auto") == "cpu" else time.perf_counter


def eager_loop(model: str, batch: int) -> dict[str, float]:
    """Return the images a second of what most write: torchvision's own network, fp32, contiguous, eager.

    It has a process of its own: what a worker sets for the memory allocator makes this one faster, too.
    """
    torch.set_num_threads(1)
    if MODELS[model] == "detect":
        module = torchvision.models.get_model(model, weights=None, weights_backbone=None).eval()
        inputs: Any = [torch.rand(3, 480, 640) for _ in range(batch)]
    else:
        module = torchvision.models.get_model(model, weights=None).eval()
        inputs = torch.rand(batch, 3, 224, 224)
    best = 0.0
    with torch.inference_mode():
        for _ in range(ROUNDS):
            started = clock()()
            module(inputs)
            best = max(best, batch / (clock()() - started))
    return {"rate": best}


def name_of(settings: Settings) -> str:
    """Return a way's name."""
    return f"{settings.precision} {settings.backend}"


def main(models: list[str]) -> None:
    """Measure each model and print it."""
    console = Console()
    keep_freed_memory()
    table = Table("model", "weights", "eager loop", "best by hand", "auto", "of the best", "times the loop")
    for model in models:
        table.add_row(model, *row(model))
    console.print(table)
    console.print("images a second of one worker; a detector's loop resizes its pictures, too")


def row(model: str) -> list[str]:
    """Measure one model."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        sets = ("coco-sample",) if MODELS[model] == "detect" else SETS
        for number, path in enumerate(islice(photographs(sets), COUNTS[MODELS[model]])):
            (photos / f"{number:04}.jpg").symlink_to(path)
        workers = Workers(job(model, str(photos), f"{folder}/out"), folder)
        plain, _ = choose(workers.spec, False, None)
        plain.apply()
        loop = alone(THIS, EAGER, model, str(plain.batch))["rate"]
        first = workers.make(plain)
        sample = TuningSample(Shard(0, workers.refs), MANY, 1, precision_open=True)
        measured = measure(workers.spec, first, sample, workers.make)
        chosen = measured.worker
        for trial in measured.trials:
            rate = "" if trial.rate is None else f"{trial.rate:.1f}"
            way = f"{model} {trial.precision} {trial.backend} {trial.batch}"
            print(f"  {way}: {trial.verdict} {rate} {trial.reason}")
        rates = by_hand(workers, plain)
        auto = max(pace(chosen, workers.refs[:TIMED]) for _ in range(ROUNDS))
        chosen.close()
    best = max(rates, key=lambda name: rates[name])
    weights = Path(workers.spec.task.weights).name  # type: ignore[attr-defined]
    return [
        weights,
        f"{loop:.1f}",
        f"{best} {rates[best]:.1f}",
        f"{name_of(chosen.settings)} {auto:.1f}",
        f"{auto / rates[best]:.0%}",
        f"{auto / loop:.2f}",
    ]


if __name__ == "__main__":
    given = sys.argv[1:]
    if given and given[0] == EAGER:
        print(json.dumps(eager_loop(given[1], int(given[2]))))
    else:
        main(given or list(MODELS))
