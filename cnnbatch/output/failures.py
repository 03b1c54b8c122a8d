"""The images of an output that failed, one after the other, however many they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import NamedTuple

from cnnbatch import terminal
from cnnbatch.output.reader import Reader


class FailedImage(NamedTuple):
    """An image that failed, and why."""

    key: str
    code: str
    message: str


def failed_images(result: Reader, shards: Collection[int] | None = None) -> Iterator[FailedImage]:
    """Yield the images that failed, in order, or those of some shards."""
    for batch in result.failed_batches(["key", "error"], shards):
        for row in batch.to_pylist():
            yield FailedImage(row["key"], row["error"]["code"], row["error"]["message"] or "")


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
