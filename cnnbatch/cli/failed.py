"""``cnnbatch failed``: the images that failed."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import OutputName, leave_with
from cnnbatch.terminal import say


def failed(
    output: OutputName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the images that failed: key, code and message, with tabs between them."""

    def action() -> int:
        from cnnbatch.output import failures
        from cnnbatch.output.reader import open_output

        found = open_output(output)
        for line in failures.json_lines(found) if as_json else failures.lines(found):
            say(line)
        return 0

    leave_with(action)
