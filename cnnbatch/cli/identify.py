"""``cnnbatch identify``: who is in photos, by people whose names are known."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.cli.index import IndexName
from cnnbatch.cli.new_file import put_table, require_new
from cnnbatch.terminal import say


def identify(
    index: IndexName,
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO...", help="Photos, or a folder of them.")],
    gallery: Annotated[
        str | None,
        typer.Option(
            "--gallery",
            metavar="FOLDER",
            help="Photos of the people who may be in them, in a folder a person; else the index's own names.",
        ),
    ] = None,
    people: Annotated[
        str | None,
        typer.Option(
            "--people",
            metavar="COLUMN",
            help="Whose names count: persons, a column of the index, or folder (of pictures); else "
            "persons, where one has a name, or as the index was built.",
        ),
    ] = None,
    rate: Annotated[
        float,
        typer.Option(
            "--rate", min=1e-9, max=0.5, help="The share of strangers who may be taken for somebody."
        ),
    ] = 1e-2,
    prior: Annotated[
        float,
        typer.Option(
            "--prior", min=1e-9, max=1 - 1e-9, help="How probable a best match is before it is seen."
        ),
    ] = 0.5,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="A new Parquet file, a face a row.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    plugin: Plugins = None,
) -> None:
    """Name the faces in PHOTOS, or say that they are of nobody who is known."""

    def action() -> int:
        from cnnbatch.index.identify import Named
        from cnnbatch.index.identify import identify as identified
        from cnnbatch.index.search import open_index

        give(plugin)
        if to is not None:
            require_new(to)
        found = identified(open_index(index), photos, Named(gallery, people), rate, prior)
        rows = found.to_pylist()
        if to is not None:
            put_table(to, found)
        for row in rows if as_json or to is None else ():
            say(json.dumps(row) if as_json else _line(row))
        if not as_json:
            for line in _summary(rows, to):
                say(line)
        return 0

    leave_with(action)


def _line(row: dict[str, Any]) -> str:
    if row["id"] is None:
        return f"{row['key']}\t{row['reason']}"
    who = {True: row["person"], False: "unknown", None: "undecided"}[row["is_known"]]
    best = row["matches"][0]
    return f"{row['id']}\t{who}\t{row['similarity']:.4f}\tbest match {best['person']} ({best['id']})"


def _summary(rows: list[dict[str, Any]], to: str | None) -> list[str]:
    faces = [row for row in rows if row["id"] is not None]
    counts = Counter(row["is_known"] for row in faces)
    named = f"{counts[True]:,} of {len(faces):,} faces named, {counts[False]:,} unknown"
    lines = [named + (f", {counts[None]:,} undecided" if counts[None] else "")]
    if reason := next((row["reason"] for row in faces if row["is_known"] is None), None):
        lines.append(f"  undecided: {reason}")
    return lines if to is None else [*lines, f"  {to}"]
