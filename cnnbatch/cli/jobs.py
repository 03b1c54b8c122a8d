"""The commands that take a job: run, check, bench, and the lists of jobs and of their fields."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from typing import Annotated

import typer

from cnnbatch.cli.command import JobName, Overrides, Plugins, give, leave_with
from cnnbatch.terminal import say


def run(
    job: JobName,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Predict only failed images again.")
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Predict what is new or changed in the input, and keep the rest.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="As --new; also mark the rows of images that are gone.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Let one output hold parts of several precisions.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and no summary.")] = False,
    plugin: Plugins = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print counts, status and paths as JSON, and nothing else.")
    ] = False,
) -> None:
    """Run a job, or go on with it where it was interrupted."""

    def action() -> int:
        from cnnbatch.inference.run import RunOptions
        from cnnbatch.job import load_job
        from cnnbatch.launch import launch

        give(plugin)
        loaded = load_job(job, overrides or [])
        options = RunOptions(retry_failed, new, prune, allow_mixed, quiet)
        if not as_json:
            return launch(loaded, options).exit_status
        from cnnbatch.terminal.console import printing_to_stderr

        with printing_to_stderr():
            summary = launch(loaded, options)
        say(summary.to_json())
        return summary.exit_status

    again = shlex.join(["cnnbatch", *sys.argv[1:]])
    leave_with(action, f"Stopped. Finished parts are kept; the same command continues: {again}", as_json)


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


def jobs() -> None:
    """List the jobs that come along, ready to run by name."""

    def action() -> int:
        from cnnbatch.job import job_names, job_purpose

        names = job_names()
        width = max(map(len, names), default=0)
        for name in names:
            say(f"{name:{width}}  {job_purpose(name)}")
        return 0

    leave_with(action)


def schema() -> None:
    """Print the JSON schema of a job, so that an editor completes and checks it."""

    def action() -> int:
        from cnnbatch.job import job_schema

        say(json.dumps(job_schema(), indent=2))
        return 0

    leave_with(action)
