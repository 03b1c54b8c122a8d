"""``cnnbatch bench``: how fast a job is here, and what bounds it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from cnnbatch.cli.command import JobName, Overrides, Plugins, give, leave_with
from cnnbatch.terminal import say


def bench(
    job: JobName,
    overrides: Overrides = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", min=1, help="How many images to run; without it, as many as half a minute takes."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugin: Plugins = None,
) -> None:
    """Measure a job's stages and a run of a sample here: how fast, what bounds it, and what would help."""

    def action() -> int:
        from cnnbatch.job import load_map_job

        give(plugin)
        loaded = load_map_job(job, overrides or [])
        from cnnbatch.inference.bench.command import bench
        from cnnbatch.inference.bench.summary import show, to_json
        from cnnbatch.terminal.console import plain_console

        found = bench(loaded, images, partial(say, err=True))
        if as_json:
            say(to_json(found))
        else:
            show(found, plain_console())
        return 0

    leave_with(action)
