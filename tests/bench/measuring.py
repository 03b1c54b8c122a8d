"""What the benchmarks of whole jobs share: the stages alone, the steady rate, a contender by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cnnbatch.inference.bench.stages import Stages

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
SETS = ("imagenet-sample", "pets")
"""Photographs of what ImageNet's classes name."""
CORES = os.cpu_count() or 1


def photographs(sets: Sequence[str] = SETS) -> Iterator[Path]:
    """Yield real photographs again and again: those beside the checkout, else those of installed packages."""
    found = [path for name in sets for path in sorted((SHARED / "data" / name).rglob("*.[jJ]*[gG]"))]
    if found:
        return cycle(found)
    import skimage
    import sklearn

    shipped = [
        *Path(skimage.__file__).parent.glob("data/*.jp*g"),
        *Path(sklearn.__file__).parent.glob("datasets/images/*.jpg"),
    ]
    return cycle(shipped)


def stages(spec: Any, settings: Mapping[str, Any], count: int) -> Stages:
    """Measure the stages of a job alone, on every core, on ``count`` images from all over its input.

    ``settings`` are those that a run of it has settled.
    """
    from cnnbatch.inference.bench.alone import measure
    from cnnbatch.inference.bench.stages import StageSample
    from cnnbatch.inference.worker.readahead import READ_THREADS
    from cnnbatch.output.plan import spread
    from cnnbatch.sources import open_source
    from cnnbatch.storage import Storage

    source = open_source(spec.input, Storage())
    refs = spread(list(source.refs()), count)
    return measure(StageSample(spec, source, refs, settings, READ_THREADS), CORES)


def steady(spec: Any) -> dict[str, Any]:
    """Run a job; return its steady rate: that of the time in which all workers are at work."""
    from cnnbatch.inference.bench.throughput import steady_rate
    from cnnbatch.inference.run import RunOptions, run
    from cnnbatch.output.folder import Output
    from cnnbatch.storage import Storage

    summary = run(spec, RunOptions(quiet=True))
    output = Output(spec.output.url, Storage())
    settled = next(iter(output.settings().values()))
    rate = steady_rate(output.footers(output.finished()))
    return {"images": summary.images, "steady": rate or 0.0, "settings": settled}


def alone(script: str, *arguments: str) -> dict[str, Any]:
    """Run a part of a benchmark in a process of its own; return what it says and its wall time."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", script, *arguments], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - started}


def show_ceiling(console: Console, model: str, found: Sequence[Stages], ours: Mapping[str, Any]) -> None:
    """Print the stages' costs, the ceiling that follows from them, and how near the job came to it."""
    from cnnbatch.inference.bench.stages import mean

    cost = mean(found).processor
    ceiling = CORES / sum(cost.values())
    how = " ".join(ours["settings"][name] for name in ("backend", "precision"))
    table = Table("stage", "CPU ms an image", title=f"{model}, {how}, {ours['images']} photographs")
    for stage, seconds in cost.items():
        table.add_row(stage, f"{1000 * seconds:.2f}")
    console.print(table)
    console.print(f"ceiling: {ceiling:.1f} images/s ({CORES} cores over the sum of the stages)")
    console.print(f"steady:  {ours['steady']:.1f} images/s = {ours['steady'] / ceiling:.0%} of the ceiling")
