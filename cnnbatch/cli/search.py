"""``cnnbatch search``: who, or what, looks like this."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.cli.index import Allowed, IndexName
from cnnbatch.terminal import say


def search(
    index: IndexName,
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO...", help="Photos to search for.")],
    k: Annotated[int, typer.Option("--k", min=1, max=10_000, help="How many to find.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Only rows that fulfil a condition on kept columns, as in \"country = 'DE' and year in "
            '(2019, 2020)".',
        ),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option("--sheet", metavar="FILE", help="Write a contact sheet, a JPEG file, with all crops."),
    ] = None,
    allow: Allowed = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Search the rest where objects are missing or damaged.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    plugin: Plugins = None,
) -> None:
    """Find what in INDEX is most similar to each photo, or to each of its faces."""

    def action() -> int:
        from cnnbatch.index.search import open_index

        give(plugin)
        opened = open_index(index)
        rows = opened.search(photos, k, where, skip_damaged).to_pylist()
        for problem in opened.damaged() if skip_damaged else ():
            say(f"left out: {problem}", err=True)
        for row in rows:
            say(json.dumps(row, default=str) if as_json else _line(row))
        if sheet is not None:
            from cnnbatch.index.originals import Originals
            from cnnbatch.index.sheet import contact_sheet
            from cnnbatch.storage import Storage, normalize

            originals = Originals(opened.uri, opened.storage, [one.value for one in allow or ()])
            Storage().put(normalize(sheet), contact_sheet(rows, originals))
            say(f"contact sheet: {sheet}", err=as_json)
            for problem in originals.problems():
                say(f"  {problem}", err=as_json)
        return 0

    leave_with(action)


def _line(row: dict[str, object]) -> str:
    return f"{row['query_id']}\t{row['rank']}\t{row['similarity']:.4f}\t{row['id']}"
