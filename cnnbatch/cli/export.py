"""``cnnbatch export``: predictions as other tools read them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnbatch.cli.command import OutputName, Plugins, give, leave_with
from cnnbatch.terminal import say

if TYPE_CHECKING:
    from cnnbatch.output.export.predictions import Painter
    from cnnbatch.output.reader import Reader


class HideFaces(Enum):
    """How faces are hidden."""

    blur = "blur"
    cover = "cover"


class Face(Enum):
    """Which face of a picture counts."""

    centre = "centre"
    largest = "largest"
    score = "score"
    all = "all"


def export(
    output: OutputName,
    format: Annotated[
        str,
        typer.Option("--format", metavar="coco|voc|yolo|csv|panoptic|pictures|chips", help="What to write."),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="PATH", help="A new folder, or a new .json or .csv file.")
    ],
    score_threshold: Annotated[
        float | None, typer.Option("--score-threshold", help="Leave out objects that score less.")
    ] = None,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="End YOLO's lines with the score; such files are not for training."),
    ] = False,
    hide_faces: Annotated[
        HideFaces | None,
        typer.Option(
            "--hide-faces", help="With pictures: blur or cover the faces that were found, and draw nothing."
        ),
    ] = None,
    faces: Annotated[str | None, typer.Option("--faces", hidden=True)] = None,
    face: Annotated[
        Face, typer.Option("--face", help="With chips: which face of a picture counts.")
    ] = Face.centre,
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            metavar="boxes|map|objects",
            help="Which answer to write where a row has several, as three_views has; else its objects.",
        ),
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Write the predictions in OUT as other tools read them, as COCO, VOC or YOLO have it, or as pictures."""

    def action() -> int:
        from cnnbatch.errors import UserError
        from cnnbatch.output.export import ExportOptions, export

        if faces is not None:
            raise UserError(
                "--faces: there is no such option\n"
                "  what to do: --hide-faces blur or cover hides faces in pictures; --face says which face of "
                "a picture becomes a chip"
            )
        give(plugin)
        hide: Any = hide_faces.value if hide_faces else None
        which: Any = face.value
        options = ExportOptions(score_threshold, scores, column, _painter, hide, which)
        for line in export(output, format, to, options).lines():
            say(line)
        return 0

    leave_with(action)


def _painter(result: Reader, least: float) -> Painter:
    """Return what draws predictions; all that it needs is loaded here, for pictures alone."""
    from cnnbatch.report.painter import painter

    return painter(result, least)
