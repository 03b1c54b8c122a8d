"""``cnnbatch models``: the published models as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from cnnbatch.models.published import PublishedModel

TASKS = {
    "label": "classify",
    "embedding": "features",
    "embedding.fitted": "embed",
    "objects": "detect",
    "objects.mask": "instances",
    "objects.keypoints": "keypoints",
    "map": "segment",
    "faces": "faces",
}
"""What a listing calls models by their kind of answer, in its order."""


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
        rows = listing(pattern, task, family)
        if as_json:
            say(to_json(rows))
        else:
            are_all = pattern is None and family is None and task in (None, TASKS["label"])
            show(rows, timm_apart=are_all)
        return 0

    leave_with(action)


def listing(
    pattern: str | None = None, task: str | None = None, family: str | None = None
) -> list[PublishedModel]:
    """Return the models that are asked for, by task; raises UserError where there is none."""
    from cnnbatch.errors import UserError
    from cnnbatch.models import published
    from cnnbatch.models.published import require_option

    require_option("--task", task, TASKS.values())
    found = [row for row in published.listing(pattern, family) if task in (None, TASKS[row.answer])]
    if not found:
        wanted = {"PATTERN": pattern, "--task": task, "--family": family}
        given = " and ".join(f"{name} {value}" for name, value in wanted.items() if value)
        raise UserError(f"no model fits {given}\n  what to do: leave one of them out")
    return sorted(found, key=lambda row: [*TASKS].index(row.answer))


def to_json(rows: Iterable[PublishedModel]) -> str:
    """Return the rows as JSON: a list of objects with the fields of `PublishedModel`, and the task."""
    return json.dumps([_fields(row) for row in rows], indent=2)


def _fields(row: PublishedModel) -> dict[str, Any]:
    fields = asdict(row)
    return {"name": row.name, "task": TASKS[fields.pop("answer")], **fields}


def show(rows: Iterable[PublishedModel], timm_apart: bool = False) -> None:
    """Print a table a task; ``timm_apart`` says how to list timm's models, where they were left out."""
    import timm

    from cnnbatch.terminal.console import plain_console

    console = plain_console()
    for task, table in _tables(rows):
        console.print(task, table, "", sep="\n")
    if timm_apart:
        count = len(timm.list_models())
        console.print(f"{count:,} more are timm's: cnnbatch models 'timm/*', or part of them: 'timm/resnet*'")


def _tables(rows: Iterable[PublishedModel]) -> Iterator[tuple[str, Table]]:
    from cnnbatch.terminal.console import columns

    for task, models in groupby(rows, key=lambda row: TASKS[row.answer]):
        rows = list(models)
        about = ("About",) if any(row.about for row in rows) else ()
        family, *others = left = ("Family", "Accuracy in %", "Weights", "At hand", "Licence", *about)
        table = columns("Model", family, "Parameters", "Input", *others, left=left)
        for row in rows:
            table.add_row(*_cells(row), *([row.about] if about else []))
        yield task, table


def _cells(row: PublishedModel) -> Iterator[str]:
    yield row.name
    yield row.family
    yield f"{row.parameters / 1e6:.1f} M" if row.parameters else ""
    yield "{} x {}".format(*row.input_size) if row.input_size else ""
    yield ", ".join(f"{metric} {value:.1f}" for metric, value in row.accuracy.items())
    yield row.weights or "none published"
    yield _where(row) if row.weights else ""
    yield row.licence or ""


def _where(row: PublishedModel) -> str:
    if row.at_hand:
        return "yes"
    return "no" if row.download_mb is None else f"no, {row.download_mb:,.0f} MB"
