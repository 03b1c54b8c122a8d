"""A small output as lines on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cnnbatch import terminal
from cnnbatch.output import reader
from cnnbatch.storage import Storage


def seen(output: str, storage: Storage) -> Iterator[str]:
    """Yield a line an image of a small output: its key and its best label, or why it failed."""
    for row in reader.open_output(output, storage).arrow().to_pylist():
        if row["error"] is not None:
            words = f"failed: {row['error']['code']} ({row['error']['message']})"
        else:
            words = _found(row)
        yield terminal.line(f"  {row['key']}: {words}")


def _found(row: Mapping[str, Any]) -> str:
    """Return the class, or what was detected for sure, where that is what a task says."""
    if row.get("label") is not None:
        return str(row["label"]) if row.get("score") is None else f"{row['label']} {row['score']:.2f}"
    if row.get("objects") is None:
        return "done"
    from cnnbatch.report.pictures import counted, is_sure

    return counted(filter(is_sure, row["objects"]))
