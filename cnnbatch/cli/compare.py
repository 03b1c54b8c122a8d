"""``cnnbatch compare``: two outputs over the same images."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.terminal import say


def compare(
    a: Annotated[str, typer.Argument(metavar="OUT_A", help="The output of a job.")],
    b: Annotated[str, typer.Argument(metavar="OUT_B", help="Another one over the same images.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FOLDER", help="Write all numbers, a list, and a page with pictures."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=NUMBER",
            help="Leave with status 1 where B - A of a metric (A - B if less is better) is below a number, "
            "as in AP=-0.01, or the agreement is, as in agreement=0.98. May be given several times.",
        ),
    ] = None,
    iou: Annotated[float, typer.Option("--iou", help="The least IoU at which two boxes are the same.")] = 0.5,
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", help="In the agreement, leave out objects that score less.")
    ] = 0.5,
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            metavar="boxes|map|objects",
            help="Which answer to compare where rows have several, as three_views has; else their objects.",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Compare two outputs over the same images: where they differ and, with ground truth, which is better."""

    def action() -> int:
        from cnnbatch.evaluation.comparison import CompareOptions, compare
        from cnnbatch.evaluation.comparison.gates import read_gates
        from cnnbatch.evaluation.comparison.summary import show
        from cnnbatch.storage import Storage, normalize
        from cnnbatch.terminal.console import plain_console
        from cnnbatch.terminal.screen import Screen

        give(plugin)
        storage, options = (
            Storage(),
            CompareOptions(iou, score_threshold, read_gates(fail_under or []), column),
        )
        with Screen(quiet=False) as screen:
            found = compare(a, b, options, storage, screen)
        show(found, plain_console())
        if to is not None:
            from cnnbatch.evaluation.comparison.page import save

            save(found, normalize(to), storage)
        broken = found.broken()
        for line in broken:
            say(line, err=True)
        return 1 if broken else 0

    leave_with(action)
