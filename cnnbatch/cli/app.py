"""The commands, each a few lines; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from cnnbatch.terminal import interrupts

if __name__ == "__main__":
    interrupts.install()  # Before anything that takes long to import.

import typer
from typer.core import TyperGroup

from cnnbatch import __version__
from cnnbatch.cli import data
from cnnbatch.errors import EnvironmentFault, OutputHeld, UserError
from cnnbatch.output import failures
from cnnbatch.terminal import never_fail, say, steering, unlike


class _Commands(TyperGroup):
    """Looks at the arguments of every command before anything else does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        never_fail()
        for text in args:
            if mark := steering(text.replace("\n", "").replace("\t", "")):
                say(f"the argument {text!r}: expected {unlike(mark)}", err=True)
                raise typer.Exit(2)
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Apply convolutional networks to whole image collections: object storage in, Parquet out.",
)


def main() -> None:
    """Run the command line, and end the Ray that it started."""
    interrupts.install()
    try:
        app()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        # After a signal at once, too: Python itself dies of a KeyboardInterrupt that it met inside `exec`.
        if not _close_ray() or status > 128:
            interrupts.leave(status)
        raise


def _close_ray() -> bool:
    """End the connection to Ray, where there is one; say whether Ray let go."""
    session = sys.modules.get("cnnbatch.cluster.session")
    return session is None or session.close()


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"cnnbatch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take what stands before a command."""


JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="The name of a job (see `cnnbatch jobs`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the job, as in input=photos compute.workers=4."
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE:NAME",
        help="Code that an output's job.yaml may name: a task, or a network's function. May come again.",
    ),
]


def _give(plugins: list[str] | None) -> None:
    if plugins:
        from cnnbatch.config.plugins import give

        give(plugins)


@app.command("run", no_args_is_help=True)
def _run(
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

        _give(plugin)
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
    _exit_with(action, f"Stopped. Finished parts are kept; the same command continues: {again}", as_json)


@app.command("check", no_args_is_help=True)
def _check(
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

        _give(plugin)
        loaded = load_map_job(job, overrides or [])  # Its mistakes are told before torch is imported.
        from cnnbatch.inference.bench import check
        from cnnbatch.inference.worker import malloc

        malloc.keep_freed_memory()  # This process is the check's own, and measures as a worker does.
        for line in check.lines(check.check(loaded, images), price):
            say(line)
        return 0

    _exit_with(action)


@app.command("bench", no_args_is_help=True)
def _bench(
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

        _give(plugin)
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

    _exit_with(action)


@app.command("jobs")
def _jobs() -> None:
    """List the jobs that come along, ready to run by name."""

    def action() -> int:
        from cnnbatch.job import job_names, job_purpose

        names = job_names()
        width = max(map(len, names), default=0)
        for name in names:
            say(f"{name:{width}}  {job_purpose(name)}")
        return 0

    _exit_with(action)


@app.command("schema")
def _schema() -> None:
    """Print the JSON schema of a job, so that an editor completes and checks it."""

    def action() -> int:
        from cnnbatch.job import job_schema

        say(json.dumps(job_schema(), indent=2))
        return 0

    _exit_with(action)


@app.command("evaluate", no_args_is_help=True)
def _evaluate(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")],
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

        _give(plugin)
        with Screen(quiet) as screen:
            evaluation = evaluate_again(output, fields or [], screen)
        for line in lines(evaluation):
            screen.say(line)
        return 0

    _exit_with(action)


@app.command("report", no_args_is_help=True)
def _report(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")],
    plugin: Plugins = None,
) -> None:
    """Write report.html again from what a job has left in OUT."""

    def action() -> int:
        from cnnbatch.launch import report
        from cnnbatch.storage import Storage, normalize

        _give(plugin)
        report(normalize(output), Storage())
        return 0

    _exit_with(action)


@app.command("describe", no_args_is_help=True)
def _describe(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Where the images lie, as in a job's input.url.")
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of a job's input, as in truth=instances.json."),
    ] = None,
    page: Annotated[
        str | None, typer.Option("--page", metavar="FILE", help="Write a page with pictures, too.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only so many images.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read headers only: damage is not found.")] = False,
) -> None:
    """Say what a collection is: sizes, formats, damage, copies, and the classes and objects of its truth."""

    def action() -> int:
        from cnnbatch.cli.describe import read_input
        from cnnbatch.sources.describe import opened

        chosen = read_input(source, fields or [], limit)
        images = opened(chosen)  # Its mistakes are told before torch is imported.
        from cnnbatch.report.collection import describe_input

        describe_input(chosen, images, page, fast)
        return 0

    _exit_with(action)


@app.command("models")
def _models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="A name, 'resnet*', 'keras/*' or 'timm/*'.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only models for this task.")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only models of this family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models by task, with their publishers' numbers, and whether their weights are at hand."""

    def action() -> int:
        from cnnbatch.cli import models

        rows = models.listing(pattern, task, family)
        if as_json:
            say(models.to_json(rows))
        else:
            models.show(rows, timm_apart=pattern is None and family is None)
        return 0

    _exit_with(action)


@app.command("export", no_args_is_help=True)
def _export(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")],
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
        from cnnbatch.output.export import Options, export

        _give(plugin)
        for line in export(output, format, to, Options(score_threshold, scores)).lines():
            say(line)
        return 0

    _exit_with(action)


@app.command("compare", no_args_is_help=True)
def _compare(
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
        from cnnbatch.evaluation.comparison import Options, compare
        from cnnbatch.evaluation.comparison.gates import read_gates
        from cnnbatch.evaluation.comparison.summary import show
        from cnnbatch.storage import Storage, normalize
        from cnnbatch.terminal.console import plain_console
        from cnnbatch.terminal.screen import Screen

        _give(plugin)
        storage, options = Storage(), Options(iou, score_threshold, read_gates(fail_under or []))
        with Screen(quiet=False) as screen:
            found = compare(a, b, options, storage, screen)
        show(found, plain_console())
        if to is not None:
            found.save(normalize(to), storage)
        broken = found.broken()
        for line in broken:
            say(line, err=True)
        return 1 if broken else 0

    _exit_with(action)


def _exit_with(action: Callable[[], int], stopped: str = "Stopped.", as_json: bool = False) -> None:
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


data.add_to(app, _exit_with)
failures.add_to(app, _exit_with)

if __name__ == "__main__":
    main()
