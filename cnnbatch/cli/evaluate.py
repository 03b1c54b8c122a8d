"""``cnnbatch evaluate``: an output is judged again."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import OutputName, Plugins, give, leave_with


def evaluate(
    output: OutputName,
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="truth, format, label, split, relabel, ignore: other ground truth than the job's; slices, "
            "aliases, workers. Of faces truth may be a list of pairs or people: face, absent, draws.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and no numbers.")] = False,
    plugin: Plugins = None,
) -> None:
    """Re-evaluate an output without predicting, with other ground truth if given; rewrite its report."""

    def action() -> int:
        from cnnbatch.cli.evaluate_again import evaluate_again
        from cnnbatch.output.evaluation import lines
        from cnnbatch.terminal.screen import Screen

        give(plugin)
        with Screen(quiet) as screen:
            evaluation = evaluate_again(output, fields or [], screen)
        for line in lines(evaluation):
            screen.say(line)
        return 0

    leave_with(action)
