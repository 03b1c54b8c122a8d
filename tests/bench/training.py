"""Training speed: the loop against its own ceiling, a plain eager loop, and one worker against two.

    python -m tests.bench.training [loop | workers]

Photographs are real where they lie beside the checkout. Ratios hold within one run.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console

from cnnbatch.inference.run import RunOptions
from cnnbatch.inference.worker import malloc
from cnnbatch.job import TrainJob
from cnnbatch.launch import launch
from tests.bench.measuring import alone, photographs

THIS = "tests.bench.training"
MODEL, SIDE, BATCH, CLASSES = "resnet18", 160, 128, 4
COUNT = 1152
PAIRS = 5


def job(photos: str, out: str, **compute: Any) -> TrainJob:
    """Return the training: all of a network from random weights, which is the most to learn."""
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {"name": "classify", "model": MODEL, "preprocessing": {"resize": SIDE, "crop": SIDE}},
            "train": {"strategy": "scratch", "epochs": 1, "batch": BATCH, "test": 0.0, "validation": 0.02},
            "input": {"url": photos, "format": "folders"},
            "output": out,
            "compute": {"pool": "inline", "cpus_per_worker": 1, **compute},
        }
    )


def folder_of(where: Path, count: int) -> str:
    """Fill folders named by class with photographs."""
    for number, path in enumerate(islice(photographs(), count)):
        target = where / f"class-{number % CLASSES}" / f"{number:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return str(where)


def ours(photos: str, out: str) -> dict[str, float]:
    """Train here, on one core; return images a second of an epoch, decoding and all."""
    malloc.keep_freed_memory()
    torch.set_num_threads(1)
    launch(job(photos, out), RunOptions(quiet=True))
    return {"rate": rate_of(out)}


def rate_of(out: str) -> float:
    """Return the images a second of the first epoch, for which every picture is read and decoded."""
    rows = pq.read_table(Path(out) / "metrics.parquet", columns=["epoch", "images_per_second"]).to_pylist()
    return float([row["images_per_second"] for row in rows if row["epoch"] == 0][-1])


def plain(photos: str, out: str) -> dict[str, float]:
    """Train as most write it, on one core: a DataLoader, eager fp32, AdamW."""
    import torchvision
    from torchvision import datasets
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(SIDE, scale=(0.35, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.set_num_threads(1)
    loader: Any = torch.utils.data.DataLoader(datasets.ImageFolder(photos, transform), BATCH, shuffle=True)
    module = torchvision.models.get_model(MODEL, num_classes=CLASSES).train()
    optimizer, seen, started = torch.optim.AdamW(module.parameters(), 1e-3), 0, 0.0
    for number, (pixels, classes) in enumerate(loader):
        if number == 2:
            started, seen = time.perf_counter(), 0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(pixels), classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen += len(classes)
    return {"rate": seen / (time.perf_counter() - started)}


def stages(photos: str, out: str) -> dict[str, float]:
    """Return the processor's milliseconds an image of each stage alone, and the ceiling of all."""
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
    spec = job(photos, out)
    parts = parts_of(spec, Storage())
    collected = collect(spec, parts, Output(out, Storage()))
    recipe = spec.task.recipe(spec.train, collected.data)
    source = open_source(parts.train, Storage())
    loader = Loader(recipe, source, collected.train, 0, 0, DecodeOptions(1, BATCH))
    plan = Plan(spec.train, 1, 1e-3, "cpu", precision_for("auto", "cpu", recipe.module))
    loop = Loop(recipe, plan, loader, loader, Team(), Silent())
    seconds = {"read, decode and augment": 0.0, "step": 0.0}
    images, begun = 0, time.process_time()
    recipe.module.train()
    for number, examples in enumerate(loader.training(0, BATCH)):
        loaded = time.process_time()
        loop._step(0, number, examples)
        stepped = time.process_time()
        if number >= 2:
            seconds["read, decode and augment"] += loaded - begun
            seconds["step"] += stepped - loaded
            images += len(examples)
        begun = time.process_time()
        if number == 12:
            break
    loader.close()
    each = {name: 1000 * value / images for name, value in seconds.items()}
    return {**each, "ceiling": 1000 / sum(each.values())}


def on_workers(photos: str, out: str, workers: str) -> dict[str, float]:
    """Train on Ray with so many workers of one core."""
    launch(job(photos, out, pool="ray", cpus_per_worker=1, workers=int(workers)), RunOptions(quiet=True))
    return {"rate": rate_of(out)}


def main(what: str = "") -> None:
    """Measure and print."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        photos = folder_of(Path(folder) / "photos", COUNT)
        if what != "workers":
            show_loop(console, photos, folder)
        if what != "loop":
            show_workers(console, photos, folder)


def show_loop(console: Console, photos: str, folder: str) -> None:
    """Print the loop's rate beside its ceiling and the plain loop's."""
    before = alone(THIS, "stages", photos, f"{folder}/stages-1")
    found = alone(THIS, "ours", photos, f"{folder}/ours")["rate"]
    after = alone(THIS, "stages", photos, f"{folder}/stages-2")  # Twice: the machine's speed drifts.
    theirs = alone(THIS, "plain", photos, folder)["rate"]
    ceiling = (before["ceiling"] + after["ceiling"]) / 2
    for name in ("read, decode and augment", "step"):
        console.print(f"{name}: {(before[name] + after[name]) / 2:.2f} ms of the processor an image")
    how = f"{MODEL} at {SIDE} px, batch {BATCH}, one core"
    console.print(f"{how}: {found:.1f} images/s, {found / ceiling:.0%} of {ceiling:.1f}")
    console.print(
        f"a plain eager fp32 loop: {theirs:.1f} images/s; cnnbatch is {found / theirs:.2f} times that"
    )


def show_workers(console: Console, photos: str, folder: str) -> None:
    """Print how much faster two workers of one core are than one."""
    ratios = []
    for pair in range(PAIRS):
        rates = [
            alone(THIS, "on_workers", photos, f"{folder}/{pair}-{count}", str(count))["rate"]
            for count in (1, 2)
        ]
        ratios.append(rates[1] / rates[0])
        console.print(f"one worker {rates[0]:.1f} images/s, two {rates[1]:.1f}: {ratios[-1]:.2f} times")
    console.print(f"median of {PAIRS} pairs: {statistics.median(ratios):.2f} times")


if __name__ == "__main__":
    contenders: dict[str, Callable[..., Any]] = {
        "ours": ours,
        "plain": plain,
        "stages": stages,
        "on_workers": on_workers,
    }
    given = sys.argv[1:]
    if given and given[0] in contenders:
        print(json.dumps(contenders[given[0]](*given[1:])))
    else:
        main(*given)
