"""The rows that weigh most among any number of them, a bounded number kept."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


class Largest:
    """At most ``size`` rows of the greatest ``weight``, of equal ones by ``key``; ``rows`` are in order."""

    def __init__(self, size: int) -> None:
        self.rows: pa.Table | None = None
        self._size = size

    def add(self, rows: pa.Table) -> None:
        """Take rows with the columns ``weight`` and ``key`` in; all calls have the same columns."""
        both = rows if self.rows is None else pa.concat_tables([self.rows, rows])
        order: Any = pc.sort_indices(both, [("weight", "descending"), ("key", "ascending")])
        self.rows = both.take(order[: self._size])  # A copy: a slice would hold the whole batch.
