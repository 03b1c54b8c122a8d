"""A small output as lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cnnbatch import terminal
from cnnbatch.output import reader
from cnnbatch.storage import Storage
from cnnbatch.types import FORGOTTEN


def result_lines(output: str, storage: Storage) -> Iterator[str]:
    """Yield a line an image of a small output: its key and its answer, or why it failed."""
    for row in reader.open_output(output, storage).arrow().to_pylist():
        if row["error"] is not None and row["error"]["code"] == FORGOTTEN:
            continue
        if row["error"] is not None:
            words = f"failed: {row['error']['code']} ({row['error']['message']})"
        else:
            words = _answer(row)
        yield terminal.line(f"  {row['key']}: {words}")


def _answer(row: Mapping[str, Any]) -> str:
    """Return the first kind of answer that a row has in words."""
    from cnnbatch.report.answers import answers_among

    known = ((row[kind], entry) for kind, entry in answers_among(row).items())
    return next((entry.line(answer, row) for answer, entry in known if answer is not None), "done")
