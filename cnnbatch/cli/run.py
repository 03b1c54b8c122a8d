"""``cnnbatch run``: a job of any kind, or what is left of one."""

from __future__ import annotations

import shlex
import sys
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
        from cnnbatch.job import load_job

        give(plugin)
        loaded = load_job(job, overrides or [])
        from cnnbatch.inference.driver import early

        early.begin(loaded)
        from cnnbatch.inference.run import RunOptions
        from cnnbatch.launch import launch

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
