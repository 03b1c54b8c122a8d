"""What the benchmarks of whole jobs share: the stages alone, the steady rate, a contender by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
SETS = ("pets", "camvid", "blood-cells", "imagenet-sample", "coco-sample", "raccoon", "lfw")
CORES = os.cpu_count() or 1
STAGES = ("read", "decode", "prepare", "forward", "rows", "write")


def photographs(sets: Sequence[str] = SETS) -> Iterator[Path]:
    """Yield real photographs again and again: those beside the checkout, else those of installed packages."""
    found = [path for name in sets for path in sorted((SHARED / "data" / name).rglob("*.jpg"))]
    if found:
        return cycle(found)
    import skimage
    import sklearn

    shipped = [
        *Path(skimage.__file__).parent.glob("data/*.jp*g"),
        *Path(sklearn.__file__).parent.glob("datasets/images/*.jpg"),
    ]
    return cycle(shipped)


def stages(spec: Any, photos: str, count: int) -> dict[str, Any]:
    """Return processor seconds an image of every stage of a job, each alone on one thread.

    Run by as many processes as there are cores, at once: cores share caches and memory, and what one
    of them does alone is no ceiling for all. ``count`` photographs are taken, from all over the folder.
    """
    import pyarrow as pa
    import torch

    from cnnbatch.decode import decode
    from cnnbatch.records import Image, ImageRef
    from cnnbatch.sink import Outcome, PartSpool, part_rows, part_schema
    from cnnbatch.speed import choose, keep_freed_memory
    from cnnbatch.worker import _batches, _split, _stack

    keep_freed_memory()
    torch.set_num_threads(1)
    settings = choose(spec, 1000, False, None)
    model = spec.task.load(settings.runtime())
    every = sorted(Path(photos).iterdir())
    paths = every[:: max(1, len(every) // count)]
    seconds: dict[str, Any] = {"precision": settings.precision}

    def timed(stage: str, work: Callable[[], list[Any]]) -> list[Any]:
        work()  # Once unmeasured: caches, allocators, kernels.
        started = time.process_time()
        result = work()
        seconds[stage] = (time.process_time() - started) / len(paths)
        return result

    data = timed("read", lambda: [path.read_bytes() for path in paths])
    pixels = timed("decode", lambda: [decode(one, model.decode_size) for one in data])
    images = [
        Image(ImageRef(path.name, str(path)), one, size)
        for path, (one, size) in zip(paths, pixels, strict=True)
    ]
    prepared = timed("prepare", lambda: [model.prepare(image) for image in images])

    def forward() -> list[Any]:
        found: list[Any] = [None] * len(images)
        with torch.inference_mode():
            for start in range(0, len(images), settings.window):
                window = [one[0] for one in prepared[start : start + settings.window]]
                for batch in _batches(window, settings.batch):
                    inputs = [window[number] for number in batch]
                    sizes = torch.tensor([one.size for one in inputs])
                    outputs = _split(model.forward(_stack(inputs), sizes))
                    for number, output in zip(batch, outputs, strict=True):
                        found[start + number] = output
        return found

    outputs = timed("forward", forward)
    schema = part_schema(pa.schema([]), (), spec.task.columns())

    def rows() -> list[Any]:
        task_rows = model.rows(images, prepared, [[output] for output in outputs])
        return [part_rows([Outcome(image.ref) for image in images], task_rows, schema)]

    made = timed("rows", rows)

    def write() -> list[Any]:
        with PartSpool(schema) as spool:
            spool.write(made[0])
            return [spool.finish({})]

    timed("write", write)
    return seconds


def steady(spec: Any) -> dict[str, float]:
    """Run a job; return its steady rate: that of the time in which all workers are at work."""
    from datetime import datetime

    from cnnbatch.output import Output
    from cnnbatch.run import RunOptions, run
    from cnnbatch.storage import Storage

    summary = run(spec, RunOptions(quiet=True))
    output = Output(spec.output.url, Storage())
    footers = [output.footer(index) for index in sorted(output.finished())]
    ends: dict[int, list[tuple[float, int]]] = {}
    for footer in footers:
        ended = datetime.fromisoformat(footer["finished"]).timestamp()
        ends.setdefault(footer["worker"], []).append((ended, footer["receipt"]["rows"]))
    # From when every worker has finished its first shard (it warmed up in it) to when one has no more.
    since, until = max(min(own)[0] for own in ends.values()), min(max(own)[0] for own in ends.values())
    done = 0.0
    for own in ends.values():  # A worker predicts its shards one after the other.
        for (start, _), (end, rows) in pairwise(sorted(own)):
            done += rows * max(0.0, min(end, until) - max(start, since)) / (end - start)
    return {"images": summary.images, "steady": done / (until - since)}


def alone(script: str, *arguments: str) -> dict[str, Any]:
    """Run a part of a benchmark in a process of its own; return what it says and its wall time."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", script, *arguments], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - started}


def on_every_core(script: str, *arguments: str) -> list[dict[str, Any]]:
    """Run the same part in as many processes as there are cores, all at once."""
    with ThreadPoolExecutor(CORES) as threads:
        return list(threads.map(lambda _: alone(script, *arguments), range(CORES)))


def show_ceiling(
    console: Console, model: str, every: Sequence[Mapping[str, Any]], ours: Mapping[str, Any]
) -> None:
    """Print the stages' costs, the ceiling that follows from them, and how near the job came to it."""
    cost = {stage: sum(core[stage] for core in every) / len(every) for stage in STAGES}
    ceiling = CORES / sum(cost.values())
    title = f"{model}, {every[0]['precision']}, {ours['images']} photographs"
    table = Table("stage", "CPU ms an image", title=title)
    for stage, seconds in cost.items():
        table.add_row(stage, f"{1000 * seconds:.2f}")
    console.print(table)
    console.print(f"ceiling: {ceiling:.1f} images/s ({CORES} cores over the sum of the stages)")
    console.print(f"steady:  {ours['steady']:.1f} images/s = {ours['steady'] / ceiling:.0%} of the ceiling")
