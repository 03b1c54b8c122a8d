"""``cnnbatch persons``: who is who in an index, and what people correct of it."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.cli.index import IndexName
from cnnbatch.cli.new_file import put_table, require_new
from cnnbatch.errors import UserError
from cnnbatch.terminal import say


def persons(
    index: IndexName,
    name: Annotated[
        tuple[str, str] | None,
        typer.Option("--name", metavar="PERSON NAME", help="Give a person a name; '' takes it away."),
    ] = None,
    merge: Annotated[
        tuple[str, str] | None,
        typer.Option("--merge", metavar="PERSON OTHER", help="Say that two persons are one."),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="PERSON", help="Propose how a person is cut in two.")
    ] = None,
    faces: Annotated[
        list[str] | None,
        typer.Option("--faces", metavar="ID", help="A face of the second half; may be given several times."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Cut the person as --split proposes.")] = False,
    take_back: Annotated[
        str | None,
        typer.Option(
            "--take-back",
            metavar="PERSON",
            help="Take back what was said of a person's faces, or of one face.",
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="A new Parquet file, a face a row.")
    ] = None,
) -> None:
    """List the persons of an index, name them, and say which are one and which are two.

    A person is meant by number or by name. What is said holds in every later grouping.
    """

    def action() -> int:
        from cnnbatch.index.persons import correcting

        if sum(one is not None for one in (name, merge, split, take_back)) > 1:
            raise UserError(
                "expected one of --name, --merge, --split and --take-back at a time\n"
                "  what to do: give them one after the other"
            )
        if name is not None:
            correcting.name(index, *name)
        elif merge is not None:
            correcting.merge(index, *merge)
        elif split is not None and yes:
            correcting.split(index, split, faces or ())
        elif take_back is not None:
            correcting.take_back(index, take_back)
        return _proposal(index, split, faces or ()) if split is not None and not yes else _listed(index, to)

    leave_with(action, "Stopped. The index is as it was.")


def _listed(index: str, to: str | None) -> int:
    from cnnbatch.index.persons import correcting
    from cnnbatch.index.search import open_index

    if to is not None:
        require_new(to)
    found = correcting.persons_of(open_index(index))
    if to is not None:
        put_table(to, correcting.as_table(found))
        say(to)
    else:
        for line in correcting.lines(found):
            say(line)
    return 0


def _proposal(index: str, person: str, faces: list[str] | tuple[()]) -> int:
    from cnnbatch.index.persons import correcting

    for line in correcting.proposal_lines(correcting.proposal(index, person, faces)):
        say(line)
    return 0
