"""A table on disk for what does not fit in memory: SQLite's nameless file, which goes with the process."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from cnnbatch.errors import EnvironmentFault


def scratch(owner: object, tables: str, cache_kb: int) -> sqlite3.Connection:
    """Return an empty data base with ``tables`` (SQL), closed once ``owner`` is gone; for any thread."""
    base = sqlite3.connect("", check_same_thread=False)
    weakref.finalize(owner, base.close)
    base.executescript(
        f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{cache_kb};\n{tables}"
    )
    return base


@contextmanager
def on_disk(what: str) -> Iterator[None]:
    """Tell what the disk refuses as the `EnvironmentFault` that it is; ``what`` is being written."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise EnvironmentFault(
            f"{what} could not be written: {error}",
            "free space for temporary files, or set SQLITE_TMPDIR to another disk",
        ) from None
