"""``cnnbatch models``: the published models as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import timm
from rich.table import Table

from cnnbatch.terminal.console import columns, plain_console

if TYPE_CHECKING:
    from cnnbatch.models.published import PublishedModel


def to_json(rows: Iterable[PublishedModel]) -> str:
    """Return the rows as JSON: a list of objects with the fields of `PublishedModel`."""
    return json.dumps([asdict(row) for row in rows], indent=2)


def show(rows: Iterable[PublishedModel], timm_apart: bool = False) -> None:
    """Print a table a task; ``timm_apart`` says how to list timm's models, where they were left out."""
    console = plain_console()
    for task, table in _tables(rows):
        console.print(task, table, "", sep="\n")
    if timm_apart:
        count = len(timm.list_models())
        console.print(f"{count:,} more are timm's: cnnbatch models 'timm/*', or part of them: 'timm/resnet*'")


def _tables(rows: Iterable[PublishedModel]) -> Iterator[tuple[str, Table]]:
    for task, models in groupby(rows, key=lambda row: row.task):
        others = ("Family", "Parameters", "Input", "Accuracy in %", "Weights", "At hand", "Licence")
        table = columns("Model", *others, left=("Family", "Accuracy in %", "Weights", "At hand", "Licence"))
        for row in models:
            table.add_row(*_cells(row))
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
