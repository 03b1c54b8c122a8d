"""``cnnbatch calibrate``: what the similarities of an index mean."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.cli.index import IndexName
from cnnbatch.terminal import say


def calibrate(
    index: IndexName,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="FILE", help="A CSV file with the columns a, b, same.")
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(
            "--people",
            metavar="COLUMN",
            help="Compare all pictures of people that the index names: by a column that it keeps, or folder.",
        ),
    ] = None,
    absent: Annotated[
        str | None,
        typer.Option(
            "--absent",
            metavar="FOLDER",
            help="Photos of people who are not in the index, in a folder a person: calibrates searches, too.",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Measure which similarity is whose, and keep thresholds by their error rates in INDEX."""

    def action() -> int:
        from cnnbatch.index.calibrate import Known
        from cnnbatch.index.calibrate import calibrate as measured
        from cnnbatch.index.calibrated import lines
        from cnnbatch.index.search import open_index
        from cnnbatch.storage import join, redact

        give(plugin)
        opened = open_index(index)
        for line in lines(measured(opened, Known(pairs, people, absent)), len(opened)):
            say(line)
        say(f"  report: {redact(join(opened.uri, 'report.html'))}")
        return 0

    leave_with(action)
