"""``cnnbatch group``: the faces of an index, grouped into persons."""

from __future__ import annotations

from typing import Annotated

import typer

from cnnbatch.cli.command import leave_with
from cnnbatch.cli.index import IndexName
from cnnbatch.terminal import say


def group(
    index: IndexName,
    similarity: Annotated[
        float | None,
        typer.Option(
            "--similarity",
            help="The mean cosine with a person's faces from which a face is of that person; else as before, "
            "or as calibrated at a false accept rate of 1e-4.",
        ),
    ] = None,
    unsure: Annotated[
        float | None,
        typer.Option(
            "--unsure", help="From which on a face that joins nobody is unsure; else as before, or at 1e-3."
        ),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Group all faces again, and not only those that are of nobody.")
    ] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="COLUMN",
            help="Change nothing, and say how well the people are found whom a column of the index names "
            "(folder: of their pictures), at this and other similarities.",
        ),
    ] = None,
) -> None:
    """Group the faces of an index into persons: new ones join a person, found one, or stay unsure.

    Persons keep their numbers, and what was said by cnnbatch persons holds.
    """

    def action() -> int:
        from cnnbatch.index.persons import evaluating, group
        from cnnbatch.index.search import open_index

        if evaluate is not None:
            opened = open_index(index)
            found = evaluating.evaluate(opened, evaluate, group.similarity_of(opened, similarity))
            for line in evaluating.lines([*found]):
                say(line)
            return 0
        for line in group.lines(group.group(index, similarity, unsure, anew)):
            say(line)
        return 0

    leave_with(action, "Stopped. The index is as it was.")
