"""Text for people on the standard output: on a terminal folded to its width, else a line a row."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.table import Table

WIDE = 1000  # columns without a terminal: no row is folded, so that other programs can read them


def plain_console() -> Console:
    """Return the standard output; nothing that is printed there is taken for markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=WIDE)


def columns(first: str, *others: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines; ``others`` stand to the right as numbers do, but ``left``."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
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
