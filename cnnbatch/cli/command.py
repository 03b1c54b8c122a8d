"""What all commands share: arguments that many have, and the exit status with its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from cnnbatch.errors import EnvironmentFault, OutputHeld, UserError
from cnnbatch.terminal import interrupts, say

JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="The name of a job (see `cnnbatch jobs`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the job, as in input=photos compute.workers=4."
    ),
]
OutputName = Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE:NAME",
        help="Code that an output's job.yaml may name: a task, or a network's function. May be given "
        "several times.",
    ),
]


def give(plugins: list[str] | None) -> None:
    """Let an output's job.yaml name this code."""
    if plugins:
        from cnnbatch.config.plugins import give

        give(plugins)


def leave_with(action: Callable[[], int], stopped: str = "Stopped.", as_json: bool = False) -> None:
    """Leave with the status of ``action``: a person's mistake, a fault and a stop in plain words.

    With ``as_json`` these are a JSON object on the standard output, too.
    """
    try:
        with interrupts.unwinding(stopped):
            status, words = action(), ""
    except UserError as error:
        status, words = 2, str(error)
    except EnvironmentFault as error:
        status, words = 3, str(error)
    except OutputHeld as error:
        status, words = 4, str(error)
    except KeyboardInterrupt:
        status, words = 130, f"\n{stopped}"
    except interrupts.Terminated as signalled:
        status, words = signalled.status, stopped
    except Exception as error:
        if not (words := _refused(error)):
            raise
        status = 2
    if words:
        say(words, err=True)
        if as_json:
            say(json.dumps({"status": status, "error": words.strip()}))
    raise typer.Exit(status)


def _refused(error: Exception) -> str:
    """Say what a file that is no image's, as one of an output's own, can't be read for; else nothing."""
    from cnnbatch.storage import Forbidden, Unreadable

    if not isinstance(error, (Forbidden, Unreadable)):
        return ""
    return f"{error}\n  what to do: put a file there that this user may read; finished parts are kept"
