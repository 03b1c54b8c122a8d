"""``cnnbatch models``: the published models as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from cnnbatch.models.published import Published


def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="A name, 'resnet*', 'keras/*' or 'timm/*'.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only models for this task.")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only models of this family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models by task, with their publishers' numbers, and whether their weights are at hand."""

    def action() -> int:
        from cnnbatch.models import published

        rows = published.listing(pattern, task, family)
        if as_json:
            say(to_json(rows))
        else:
            show(rows, timm_apart=pattern is None and family is None)
        return 0

    leave_with(action)


def to_json(rows: Iterable[Published]) -> str:
    """Return the rows as JSON: a list of objects with the fields of `Published`."""
    return json.dumps([asdict(row) for row in rows], indent=2)


def show(rows: Iterable[Published], timm_apart: bool = False) -> None:
    """Print a table a task; ``timm_apart`` says how to list timm's models, where they were left out."""
    import timm

    from cnnbatch.terminal.console import plain_console

    console = plain_console()
    for task, table in _tables(rows):
        console.print(task, table, "", sep="\n")
    if timm_apart:
        count = len(timm.list_models())
        console.print(f"{count:,} more are timm's: cnnbatch models 'timm/*', or part of them: 'timm/resnet*'")


def _tables(rows: Iterable[Published]) -> Iterator[tuple[str, Table]]:
    from cnnbatch.terminal.console import columns

    for task, models in groupby(rows, key=lambda row: row.task):
        others = ("Family", "Parameters", "Input", "Accuracy in %", "Weights", "At hand", "Licence")
        table = columns("Model", *others, left=("Family", "Accuracy in %", "Weights", "At hand", "Licence"))
        for row in models:
            table.add_row(*_cells(row))
        yield task, table


def _cells(row: Published) -> Iterator[str]:
    yield row.name
    yield row.family
    yield f"{row.parameters / 1e6:.1f} M" if row.parameters else ""
    yield "{} x {}".format(*row.input_size) if row.input_size else ""
    yield ", ".join(f"{metric} {value:.1f}" for metric, value in row.accuracy.items())
    yield row.weights or "none published"
    yield _where(row) if row.weights else ""
    yield row.licence or ""


def _where(row: Published) -> str:
    if row.at_hand:
        return "yes"
    return "no" if row.download_mb is None else f"no, {row.download_mb:,.0f} MB"
