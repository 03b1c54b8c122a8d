"""Text for people on the standard output: on a terminal folded to its width, else a line a row."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.table import Table

from cnnbatch import terminal

WIDE = 1000  # columns without a terminal: no row is folded, so that other programs can read them


class _Plain(Console):
    """Takes nothing for markup, and writes what would steer a terminal as escapes."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(terminal.lines(one) if isinstance(one, str) else one for one in objects), **options)


class _Rows(Table):
    """A table of which no cell steers a terminal or breaks its line."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(
            *(terminal.line(cell) if isinstance(cell, str) else cell for cell in cells), **options
        )


def plain_console() -> Console:
    """Return the standard output; nothing that is printed there is taken for markup, or steers."""
    console = _Plain(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else _Plain(highlight=False, markup=False, emoji=False, width=WIDE)


def columns(first: str, *others: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines; ``others`` stand to the right as numbers do, but ``left``."""
    table = _Rows(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in (first, *others):
        justify: Any = "left" if name in (first, *left) else "right"
        table.add_column(terminal.line(name), justify=justify, overflow="fold")
    return table


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Send what the block prints to stderr, also what libraries write to the file descriptor."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)
