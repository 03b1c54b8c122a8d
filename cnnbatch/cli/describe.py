"""``cnnbatch describe``: what a collection is, without a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cnnbatch.cli.command import leave_with

if TYPE_CHECKING:
    from cnnbatch.config.input import Input


def describe(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Where the images lie, as in a job's input.url.")
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields of a job's input, as in truth=instances.json."),
    ] = None,
    page: Annotated[
        str | None, typer.Option("--page", metavar="FILE", help="Write a page with pictures, too.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only so many images.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read headers only: damage is not found.")] = False,
) -> None:
    """Describe a collection: sizes, formats, damage, copies, classes and objects of its ground truth."""

    def action() -> int:
        from cnnbatch.sources.describe import opened

        chosen = read_input(source, fields or [], limit)
        images = opened(chosen)  # Its mistakes are told before torch is imported.
        from cnnbatch.report.collection import describe_input

        describe_input(chosen, images, page, fast)
        return 0

    leave_with(action)


def read_input(url: str, fields: Sequence[str], limit: int | None = None) -> Input:
    """Return a job's ``input`` section from an address and ``key=value`` texts for its fields.

    Raises:
        UserError: every mistake in them, each with the expected, what came, and the nearest known name.
    """
    from cnnbatch.config.input import Input
    from cnnbatch.config.mistakes import read_fields
    from cnnbatch.sources.formats import KnownFormat

    class DescribedInput(Input):
        format: KnownFormat = "auto"

    given = {"url": url} | ({} if limit is None else {"limit": limit})
    texts = [text.removeprefix("input.") for text in fields]
    return read_fields(DescribedInput, given, texts, "the fields of the input; nothing was read")
