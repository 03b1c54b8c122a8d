"""The commands that read what a job has left: evaluate, report, export, compare, failed."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.terminal import say

OutputName = Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")]


def evaluate(
    output: OutputName,
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="truth, format, label, split: another truth than the job's; slices, aliases, workers.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and no numbers.")] = False,
    plugin: Plugins = None,
) -> None:
    """Judge an output again, perhaps by another truth, without predicting; also writes its report again."""

    def action() -> int:
        from cnnbatch.cli.evaluate import evaluate_again
        from cnnbatch.output.evaluation import lines
        from cnnbatch.terminal.screen import Screen

        give(plugin)
        with Screen(quiet) as screen:
            evaluation = evaluate_again(output, fields or [], screen)
        for line in lines(evaluation):
            screen.say(line)
        return 0

    leave_with(action)


def report(
    output: OutputName,
    plugin: Plugins = None,
) -> None:
    """Write report.html again from what a job has left in OUT."""

    def action() -> int:
        from cnnbatch.launch import report
        from cnnbatch.storage import Storage, normalize

        give(plugin)
        report(normalize(output), Storage())
        return 0

    leave_with(action)


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
            "as in AP=-0.01, or the agreement is, as in agreement=0.98. May come again.",
        ),
    ] = None,
    iou: Annotated[float, typer.Option("--iou", help="The least IoU at which two boxes are the same.")] = 0.5,
    score_threshold: Annotated[
        float, typer.Option("--score-threshold", help="In the agreement, leave out objects that score less.")
    ] = 0.5,
    plugin: Plugins = None,
) -> None:
    """Say how two outputs over the same images differ, and by their truth which is better."""

    def action() -> int:
        from cnnbatch.evaluation.comparison import CompareOptions, compare
        from cnnbatch.evaluation.comparison.gates import read_gates
        from cnnbatch.evaluation.comparison.summary import show
        from cnnbatch.storage import Storage, normalize
        from cnnbatch.terminal.console import plain_console
        from cnnbatch.terminal.screen import Screen

        give(plugin)
        storage, options = Storage(), CompareOptions(iou, score_threshold, read_gates(fail_under or []))
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
