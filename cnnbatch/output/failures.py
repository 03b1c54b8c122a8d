"""The images of an output that failed, one after the other, however many they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cnnbatch import terminal

if TYPE_CHECKING:
    from cnnbatch.output.reader import Reader


class Failed(NamedTuple):
    """An image that failed, and why."""

    key: str
    code: str
    message: str


def failed_images(result: Reader, shards: Collection[int] | None = None) -> Iterator[Failed]:
    """Yield the images that failed, in order, or those of some shards."""
    for batch in result.failed_batches(["key", "error"], shards):
        for row in batch.to_pylist():
            yield Failed(row["key"], row["error"]["code"], row["error"]["message"] or "")


def lines(result: Reader) -> Iterator[str]:
    """Yield a line an image: key, code and message, with tabs between them."""
    for one in failed_images(result):
        yield "\t".join(map(terminal.line, one))


def json_lines(result: Reader) -> Iterator[str]:
    """Yield the lines of a JSON array that has one object an image."""
    before = "["
    for one in failed_images(result):
        yield before if before == "[" else f"{before},"
        before = json.dumps(one._asdict())
    yield from ("[", "]") if before == "[" else (before, "]")


def add_to(app: typer.Typer, exit_with: Callable[[Callable[[], int]], None]) -> None:
    """Add the command ``failed`` to ``app``; ``exit_with`` leaves with an action's status."""

    @app.command("failed", no_args_is_help=True)
    def _failed(
        output: Annotated[str, typer.Argument(metavar="OUT", help="The output of a job.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List the images that failed: key, code and message, with tabs between them."""
        exit_with(lambda: _show(output, as_json))


def _show(output: str, as_json: bool) -> int:
    from cnnbatch.output import reader

    found = reader.open_output(output)
    for line in json_lines(found) if as_json else lines(found):
        terminal.say(line)
    return 0
