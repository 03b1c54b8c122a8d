"""The images that both outputs have: how many failed, and the list of those that differ most.

An image that failed in only one of them counts as a disagreement, one that failed in both not at all.
Only sums are kept, and the images that differ most.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.evaluation.comparison.measure import Measure, flags

LISTED = 1000
"""Images that are listed: so many that failed in only one output, and so many others."""


class CommonImages:
    """What is known of the images that both outputs have; `add` takes more of them in."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.images = self.failed_in_both = self.other_etags = 0
        self.failed_a, self.failed_b = Counter[str](), Counter[str]()
        self._failures, self._differing = Largest(LISTED), Largest(LISTED)

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch) -> None:
        """Take images in, rows of A (see `pairing.row_schema`) beside those of B."""
        failed_a, failed_b = flags(a["code"].is_valid()), flags(b["code"].is_valid())
        self.images += a.num_rows
        self.failed_in_both += int((failed_a & failed_b).sum())
        self.failed_a.update(_codes(a["code"].filter(pa.array(failed_a & ~failed_b))))
        self.failed_b.update(_codes(b["code"].filter(pa.array(failed_b & ~failed_a))))
        changed: Any = pc.not_equal(a["etag"], b["etag"])
        self.other_etags += pc.sum(changed).as_py() or 0
        rows = _with_places(a, b, self.measure.add(a, b, failed_a & failed_b))
        self._failures.add(rows.filter(pa.array(failed_a ^ failed_b)))
        self._differing.add(rows.filter(pc.and_(rows["differs"], pa.array(~failed_a & ~failed_b))))

    def disagreements(self) -> pa.Table:
        """Return the images to look at: what failed in only one output, then the largest differences."""
        tables = [one.rows for one in (self._failures, self._differing) if one.rows is not None]
        return pa.concat_tables(tables).drop_columns(["differs"])


def _with_places(a: pa.RecordBatch, b: pa.RecordBatch, rows: pa.Table) -> pa.Table:
    """Return rows about images with which images they are, and why they failed."""
    places = {"key": a["key"], "uri": a["uri"], "code_a": a["code"], "code_b": b["code"]}
    for name in ("part", "row"):
        places |= {f"{name}_a": a[name], f"{name}_b": b[name]}
    return pa.table({**places, **{name: rows[name] for name in rows.schema.names}})


def _codes(column: Any) -> list[str]:
    codes: list[str] = column.to_pylist()
    return codes


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
