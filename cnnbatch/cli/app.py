"""The commands by name; nothing heavy is imported before one needs it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cnnbatch import __version__
from cnnbatch.cli import (
    bench,
    calibrate,
    check,
    compare,
    data,
    describe,
    evaluate,
    export,
    failed,
    group,
    identify,
    index,
    jobs,
    models,
    persons,
    report,
    run,
    search,
    serve,
    verify,
)
from cnnbatch.terminal import interrupts, never_fail, say, steering, unlike


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


app.command("run", no_args_is_help=True)(run.run)
app.command("check", no_args_is_help=True)(check.check)
app.command("bench", no_args_is_help=True)(bench.bench)
app.command("jobs")(jobs.jobs)
app.command("schema")(jobs.schema)
app.command("evaluate", no_args_is_help=True)(evaluate.evaluate)
app.command("report", no_args_is_help=True)(report.report)
app.command("describe", no_args_is_help=True)(describe.describe)
app.command("models")(models.models)
app.command("export", no_args_is_help=True)(export.export)
app.command("compare", no_args_is_help=True)(compare.compare)
app.add_typer(data.app, name="data")
app.add_typer(index.app, name="index")
app.command("search", no_args_is_help=True)(search.search)
app.command("serve", no_args_is_help=True)(serve.serve)
app.command("verify", no_args_is_help=True)(verify.verify)
app.command("identify", no_args_is_help=True)(identify.identify)
app.command("group", no_args_is_help=True)(group.group)
app.command("persons", no_args_is_help=True)(persons.persons)
app.command("calibrate", no_args_is_help=True)(calibrate.calibrate)
app.command("failed", no_args_is_help=True)(failed.failed)
