"""A measured job as text: for people on the terminal, for programs as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cnnbatch.humanize import counted, decimal, duration
from cnnbatch.inference.bench.advice import advice
from cnnbatch.inference.messages import STAGES
from cnnbatch.terminal.console import columns

if TYPE_CHECKING:
    from cnnbatch.inference.bench.command import Bench


def to_json(found: Bench) -> str:
    """Return all figures as strict JSON; rates are images a second, ``seconds`` those of an image."""
    whole = found.whole
    data = {
        "task": found.job.task.name,
        "settings": dict(whole.settings),
        "machine": {"cores": whole.here.cores, "used": asdict(found.machine)},
        "input": {"images": found.images, "more": found.more},
        "stages": {stage: _stage(found, stage) for stage in STAGES},
        "sample": {
            "images": found.stages.images,
            "failed": found.stages.failed,
            "inputs": found.stages.inputs,
            "given": found.stages.given,
        },
        "bounds": found.rates,
        "ceiling": found.ceiling,
        "bound": found.bound,
        "bottleneck": found.bottleneck,
        "whole": {
            "images": whole.images,
            "failed": dict(whole.failed),
            "seconds": whole.seconds,
            "ray_s": whole.ray_s,
            "start_s": whole.start_s,
            "rate": whole.rate,
            "steady": whole.steady,
            "reached": found.reached,
        },
        "advice": advice(found),
    }
    return json.dumps(data, indent=1, allow_nan=False)


def _stage(found: Bench, stage: str) -> dict[str, float]:
    costs = {"seconds": found.stages.processor[stage], "rate": found.alone(stage)}
    return {**costs, "waiting_s": found.stages.seconds["read"]} if stage == "read" else costs


def show(found: Bench, console: Console) -> None:
    """Print the figures, what bounds the rate and what would help."""
    console.print(head(found), soft_wrap=True)
    console.print()
    console.print(_table(found))
    console.print()
    for line in figures(found):
        console.print(line, soft_wrap=True)
    if sentences := advice(found):
        console.print("\nwhat would help:")
        for sentence in sentences:
            console.print(f"  - {sentence}", soft_wrap=True)


def head(found: Bench) -> str:
    """Return what was measured where."""
    settings, machine = found.whole.settings, found.machine
    devices = f", {counted(machine.devices, 'accelerator')}" if machine.devices else ""
    return (
        f"{found.job.task.name} on {settings['device']}: {counted(machine.workers, 'worker')}, "
        f"{machine.cores} of {counted(found.whole.here.cores, 'core')}{devices}; {settings['precision']}, "
        f"{settings['backend']}, batches of at most {settings['batch']}"
    )


def figures(found: Bench) -> Iterator[str]:
    """Yield the ceiling, what the run came to, and what bounds it."""
    whole = found.whole
    failed = sum(whole.failed.values())
    yield f"ceiling     {decimal(found.ceiling)} images/s: {_why(found)}"
    if whole.steady is None or found.reached is None:
        yield "steady      unknown: no worker finished two parts; more --images tell"
    else:
        yield f"steady      {decimal(whole.steady)} images/s, {found.reached:.0%} of the ceiling"
    yield (
        f"whole       {decimal(whole.rate)} images/s: {whole.images:,} images in {duration(whole.seconds)}, "
        f"{duration(whole.start_s)} of them start-up{_ray(found)}"
    )
    if failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in whole.failed.items())
        yield f"failed      {failed:,} of {whole.images:,}: {codes}"
    yield f"bottleneck  {found.bottleneck}{_part(found)}"


def _table(found: Bench) -> Any:
    shares = () if found.machine.devices else ("share",)
    table = columns("Stage", "ms an image", *shares, "images/s alone")
    for stage in STAGES:
        cost = f"{1000 * (found.stages.seconds if shares == () else found.stages.processor)[stage]:.3f}"
        table.add_row(
            stage, cost, *(f"{found.share(stage):.1%}" for _ in shares), decimal(found.alone(stage))
        )
    return table


def _why(found: Bench) -> str:
    if found.bound == "the processor":
        whole = duration(sum(found.stages.processor.values()))
        return f"{found.machine.cores} cores over the {whole} of an image's stages"
    if found.bound == "reading":
        return f"{found.machine.readers} reads at a time, {duration(found.stages.seconds['read'])} each"
    return f"{found.bound}, the slowest of what goes on side by side"


def _part(found: Bench) -> str:
    is_shared = found.bound == "the processor"
    return f", {found.share(found.bottleneck):.0%} of the processor" if is_shared else ""


def _ray(found: Bench) -> str:
    return f" (Ray {duration(found.whole.ray_s)})" if found.whole.ray_s else ""
