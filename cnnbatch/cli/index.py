"""``cnnbatch index``: what there is of an index, whether it is whole, and how it becomes smaller."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.cli.new_file import put_table, require_new
from cnnbatch.terminal import say

IndexName = Annotated[str, typer.Argument(metavar="INDEX", help="An index, as cnnbatch run index builds it.")]


class Place(StrEnum):
    """What ``--allow`` may name; see `cnnbatch.storage.reach`."""

    LOCAL = "local"
    PRIVATE = "private"
    BUCKETS = "buckets"


Allowed = Annotated[
    list[Place] | None,
    typer.Option(
        "--allow",
        help="What an index in a bucket or on the web may name pictures of, to be shown: files of this "
        "machine, its private network, other buckets. May be given several times.",
    ),
]

app = typer.Typer(no_args_is_help=True, help="Indexes of embeddings: what they hold, whether they are whole.")


@app.command("info", no_args_is_help=True)
def info(
    index: IndexName, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Say what an index holds, how it is searched, and what was calibrated."""

    def action() -> int:
        from cnnbatch.index import figures
        from cnnbatch.index.calibrated import lines, read_calibrated
        from cnnbatch.index.search import open_index

        found = open_index(index)
        if as_json:
            say(json.dumps(figures.as_json(found.manifest)))
        else:
            for line in figures.about(found.manifest):
                say(line.strip())
            calibrated = read_calibrated(found.uri, found.storage, found.manifest.space)
            for line in () if calibrated is None else lines(calibrated, len(found)):
                say(line)
        return 0

    leave_with(action)


@app.command("check", no_args_is_help=True)
def check(index: IndexName) -> None:
    """Read every object of an index, compare its checksum, and measure recall anew; status 1: damaged."""

    def action() -> int:
        from cnnbatch.index import check
        from cnnbatch.index.search import open_index

        opened = open_index(index)
        found = check.check(opened.uri, opened.storage, opened.manifest)
        for line in check.lines(found):
            say(line)
        return 1 if found.damaged else 0

    leave_with(action)


@app.command("compact", no_args_is_help=True)
def compact(index: IndexName) -> None:
    """Write segments anew without rows that are gone, join small ones, and delete what is no part of it."""

    def action() -> int:
        from cnnbatch.index.compact import compact_index

        for line in compact_index(index):
            say(line)
        return 0

    leave_with(action, "Stopped. The index is whole; the same command continues.")


@app.command("duplicates", no_args_is_help=True)
def duplicates(
    index: IndexName,
    to: Annotated[str, typer.Option("--to", metavar="FILE", help="A new Parquet file.")],
    similarity: Annotated[
        float, typer.Option("--similarity", help="The least cosine of two near duplicates.")
    ] = 0.95,
) -> None:
    """Write groups of near duplicates: pictures, or faces, that are nearly the same."""

    def action() -> int:
        from cnnbatch.humanize import counted
        from cnnbatch.index.search import open_index
        from cnnbatch.terminal.screen import Screen

        require_new(to)
        opened = open_index(index)
        with Screen(quiet=False) as screen:
            found = opened.duplicates(similarity, screen.stage("compare", len(opened), "embeddings"))
        put_table(to, found)
        groups = len(found["group"].unique())
        say(f"{counted(found.num_rows, 'embedding')} in {counted(groups, 'group')}: {to}")
        return 0

    leave_with(action)
