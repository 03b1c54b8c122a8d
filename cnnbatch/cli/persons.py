"""``cnnbatch persons``: who is who in an index, and what people correct of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.cli.index import Allowed, IndexName
from cnnbatch.cli.new_file import put_table, require_new
from cnnbatch.errors import UserError
from cnnbatch.terminal import say

if TYPE_CHECKING:
    from cnnbatch.storage import Allowed as Reachable


def persons(
    index: IndexName,
    name: Annotated[
        tuple[str, str] | None,
        typer.Option("--name", metavar="PERSON NAME", help="Give a person a name; '' takes it away."),
    ] = None,
    merge: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--merge",
            metavar="PERSON OTHER",
            help="Say that two persons are one, or whose an unsure face is, by its id.",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="PERSON", help="Propose how a person is cut in two.")
    ] = None,
    faces: Annotated[
        list[str] | None,
        typer.Option("--faces", metavar="ID", help="A face of the second half; may be given several times."),
    ] = None,
    sheet: Annotated[
        str | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Where --split shows both halves, a JPEG file; else split-ID.jpg."
        ),
    ] = None,
    allow: Allowed = None,
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

        _require_sense((name, merge, split, take_back), split is not None, yes, faces or sheet, to)
        if name is not None:
            correcting.name(index, *name)
        elif merge is not None:
            correcting.merge(index, *merge)
        elif split is not None and yes:
            correcting.split(index, split, faces or ())
        elif take_back is not None:
            correcting.take_back(index, take_back)
        if split is not None and not yes:
            return _proposal(index, split, faces or (), sheet, [one.value for one in allow or ()])
        return _listed(index, to)

    leave_with(action, "Stopped. The index is as it was.")


def _require_sense(
    corrections: Sequence[object], cuts: bool, yes: bool, of_a_cut: object, to: str | None
) -> None:
    """Insist on options that belong together, before anything is changed; raises UserError."""
    if sum(one is not None for one in corrections) > 1:
        raise UserError(
            "expected one of --name, --merge, --split and --take-back at a time\n"
            "  what to do: give them one after the other"
        )
    if not cuts and (yes or of_a_cut):
        raise UserError("expected --split with --faces, --sheet and --yes\n  what to do: say who is cut")
    if cuts and not yes and to is not None:
        raise UserError("a proposed cut changes nothing that --to could write\n  what to do: leave it out")
    if to is not None:
        require_new(to)


def _listed(index: str, to: str | None) -> int:
    from cnnbatch.index.persons import correcting
    from cnnbatch.index.search import open_index

    found = correcting.persons_of(open_index(index))
    if to is not None:
        put_table(to, correcting.as_table(found))
        say(to)
    else:
        for line in correcting.lines(found):
            say(line)
    return 0


def _proposal(
    name: str, person: str, faces: Sequence[str], sheet: str | None, allow: Sequence[Reachable]
) -> int:
    from cnnbatch.index.originals import Originals
    from cnnbatch.index.persons import correcting
    from cnnbatch.index.persons.split_sheet import split_sheet
    from cnnbatch.index.search import open_index
    from cnnbatch.storage import Storage, normalize

    index = open_index(name)
    found = correcting.persons_of(index)
    cut = correcting.proposed(index, found, person, faces)
    originals = Originals(index.uri, index.storage, allow)
    to = sheet or f"split-{cut.person}.jpg"
    Storage().put(normalize(to), split_sheet(index, found, cut, originals))
    for line in correcting.proposal_lines(cut):
        say(line)
    say(f"both halves are shown in {to}")
    for problem in originals.problems():
        say(f"  {problem}")
    say("nothing was changed: give --yes to cut so")
    return 0
