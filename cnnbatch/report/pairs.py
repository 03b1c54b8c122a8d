"""Chooses the pairs of faces to show: the most similar strangers, and the least similar of one person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from typing import Any

import numpy as np

from cnnbatch.report.context import ReportContext
from cnnbatch.report.tally import RankedRow

MOST = 8
"""Pairs of each kind."""

_COLUMNS = ("same", "score", "row_a", "row_b", "face_a", "face_b")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two faces: where their pictures are, which faces of these they are, and how alike."""

    same: bool
    score: float
    places: tuple[RankedRow, RankedRow]
    faces: tuple[int, int]

    @property
    def words(self) -> str:
        """How far apart they are: a distance, which is a score below 0, or a cosine."""
        return f"distance {-self.score:.3f}" if self.score <= 0 else f"cosine {self.score:.3f}"


def hardest_pairs(context: ReportContext, sizes: Sequence[int]) -> list[Pair]:
    """Return the strangers that are most alike, then those of one person that are least; none without pairs.

    ``sizes`` are the numbers of rows of the output's parts.
    """
    table = context.table("pairs", _COLUMNS)
    if table is None:
        return []
    ends = np.cumsum(sizes)
    rows = [row for row in table.to_pylist() if row["score"] is not None]
    strangers = nlargest(MOST, (row for row in rows if not row["same"]), key=_score)
    of_one = nsmallest(MOST, (row for row in rows if row["same"]), key=_score)
    return [_pair(row, ends) for row in (*strangers, *of_one)]


def _score(row: Mapping[str, Any]) -> float:
    return float(row["score"])


def _pair(row: Mapping[str, Any], ends: Any) -> Pair:
    places = tuple(_place(row[name], ends) for name in ("row_a", "row_b"))
    return Pair(row["same"], row["score"], (places[0], places[1]), (row["face_a"], row["face_b"]))


def _place(row: int, ends: Any) -> RankedRow:
    part = int(np.searchsorted(ends, row, side="right"))
    return RankedRow(0.0, 0, part, row - (int(ends[part - 1]) if part else 0))


def with_one_face(row: Mapping[str, Any], face: int) -> dict[str, Any]:
    """Return a row with one of its faces alone."""
    return {**row, "objects": [row["objects"][face]]} if row.get("objects") else dict(row)
