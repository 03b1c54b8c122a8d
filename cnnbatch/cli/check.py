"""``cnnbatch check``: what a run would cost."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import JobName, Overrides, Plugins, give, leave_with
from cnnbatch.terminal import say


def check(
    job: JobName,
    overrides: Overrides = None,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", min=0, help="What an hour of this machine costs, in any currency."),
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="How many images to try.")] = 8,
    plugin: Plugins = None,
) -> None:
    """Try a job on a few images, write nothing, and say what a run of it would cost."""

    def action() -> int:
        from cnnbatch.job import load_map_job

        give(plugin)
        loaded = load_map_job(job, overrides or [])  # Its mistakes are told before torch is imported.
        from cnnbatch.inference.bench import check
        from cnnbatch.inference.worker import malloc

        malloc.keep_freed_memory()  # This process is the check's own, and measures as a worker does.
        for line in check.lines(check.check(loaded, images), price):
            say(line)
        return 0

    leave_with(action)
