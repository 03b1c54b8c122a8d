"""``cnnbatch export``: predictions as other tools read them."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import OutputName, Plugins, give, leave_with
from cnnbatch.terminal import say


def export(
    output: OutputName,
    format: Annotated[str, typer.Option("--format", metavar="coco|voc|yolo|csv", help="What to write.")],
    to: Annotated[
        str, typer.Option("--to", metavar="PATH", help="A free place: a folder, or a .json or .csv.")
    ],
    score_threshold: Annotated[
        float | None, typer.Option("--score-threshold", help="Leave out objects that score less.")
    ] = None,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="End YOLO's lines with the score; such files are not for training."),
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Write the predictions in OUT as other tools read them: as COCO, VOC or YOLO have it, or as CSV."""

    def action() -> int:
        from cnnbatch.output.export import ExportOptions, export

        give(plugin)
        for line in export(output, format, to, ExportOptions(score_threshold, scores)).lines():
            say(line)
        return 0

    leave_with(action)
