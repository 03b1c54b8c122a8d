"""``cnnbatch verify``: are the faces of two photos of one person?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cnnbatch.cli.command import Plugins, give, leave_with
from cnnbatch.terminal import say

if TYPE_CHECKING:
    from cnnbatch.index.verify import FoundFace, Verification

Photo = Annotated[str, typer.Argument(metavar="PHOTO", help="A photo with a face.")]


def verify(
    first: Photo,
    second: Photo,
    index: Annotated[
        str | None,
        typer.Option("--index", metavar="INDEX", help="Compare by its network, decide by its calibration."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=1e-9, max=0.5, help="The false accept rate to decide at.")
    ] = 1e-3,
    prior: Annotated[
        float,
        typer.Option("--prior", min=1e-9, max=1 - 1e-9, help="The share of pairs that are of one person."),
    ] = 0.5,
    which: Annotated[
        Literal["largest", "centre", "score", "all"],
        typer.Option("--face", help="Which of several faces of a photo; all: the two that are most alike."),
    ] = "largest",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    plugin: Plugins = None,
) -> None:
    """Say whether the faces of two photos are of one person, and what that rests on."""

    def action() -> int:
        from cnnbatch.index.search import open_index
        from cnnbatch.index.verify import verify as compared

        give(plugin)
        found = compared((first, second), open_index(index) if index else None, rate, prior, which)
        if as_json:
            say(json.dumps(asdict(found)))
        else:
            for line in _lines(found):
                say(line)
        return 0

    leave_with(action)


def _lines(found: Verification) -> list[str]:
    decision = {True: "one person", False: "two people", None: "undecided"}[found.same]
    lines = [f"{decision}: {found.reason}"]
    lines.append(f"  similarity {found.similarity:.4f}, distance {found.distance:.4f}")
    if found.probability is not None:
        lines.append(f"  probability of one person {found.probability:.4g}, with a prior of {found.prior:g}")
    return [*lines, *(_face(face) for face in (found.first, found.second))]


def _face(face: FoundFace) -> str:
    x1, y1, x2, y2 = (round(value) for value in face.box)
    others = "" if face.faces == 1 else f", one of {face.faces} faces"
    return f"  {face.photo}: ({x1}, {y1}) to ({x2}, {y2}){others}"
