"""Chooses the pairs of pictures to show: the most similar of two classes, and the least similar of one.

A class is a person where the pictures are of faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnbatch.errors import UserError
from cnnbatch.report.context import ReportContext
from cnnbatch.report.tally import RankedRow

if TYPE_CHECKING:
    import pyarrow as pa

    from cnnbatch.output.reader import Reader

MOST = 8
"""Pairs of each kind."""

_OF_FACES = ("same", "score", "row_a", "row_b", "face_a", "face_b")
_OF_PICTURES = ("same", "score", "a", "b")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures, or one face of each: where they are, which ``faces``, and how alike, in words."""

    same: bool
    words: str
    places: tuple[RankedRow, RankedRow]
    faces: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class HardestPairs:
    """Pairs to show, and what two pictures are called: ``things`` of one or two ``owners``."""

    shown: Sequence[Pair] = ()
    things: str = "pictures"
    owner: str = "class"
    owners: str = "classes"


def hardest_pairs(context: ReportContext, result: Reader) -> HardestPairs:
    """Return the strangers that are most alike, then those of one person that are least; none without pairs.

    A list of pairs was judged by faces; embeddings of pictures were judged by their classes.
    """
    if (table := context.table("pairs", _OF_FACES)) is not None:
        ends = np.cumsum([footer.rows for footer in result.receipts()])
        some = [_of_faces(row, words, ends) for row, words in _hardest(table)]
        return HardestPairs(some, "faces", "person", "people")
    if (table := context.table("hardest_pairs", _OF_PICTURES)) is not None:
        found = [_of_pictures(row, words, result) for row, words in _hardest(table)]
        return HardestPairs([pair for pair in found if pair is not None])
    return HardestPairs()


def _hardest(table: pa.Table) -> list[tuple[Mapping[str, Any], str]]:
    """Return the rows to show, each with how alike it is in words."""
    rows = [row for row in table.to_pylist() if row["score"] is not None]
    strangers = nlargest(MOST, (row for row in rows if not row["same"]), key=_score)
    of_one = nsmallest(MOST, (row for row in rows if row["same"]), key=_score)
    are_cosines = any(row["score"] > 0 for row in rows)
    return [(row, in_words(row["score"], are_cosines)) for row in (*strangers, *of_one)]


def in_words(score: float, are_cosines: bool) -> str:
    """Return a pair's score in words: a cosine, or the distance that it is minus of.

    Scores are cosines where any of them is above 0: some cosines may be below it, too, but not all of them.
    """
    return f"cosine {score:.3f}" if are_cosines else f"distance {-score:.3f}"


def _score(row: Mapping[str, Any]) -> float:
    return float(row["score"])


def _of_faces(row: Mapping[str, Any], words: str, ends: Any) -> Pair:
    places = _place(row["row_a"], ends), _place(row["row_b"], ends)
    return Pair(row["same"], words, places, (row["face_a"], row["face_b"]))


def _of_pictures(row: Mapping[str, Any], words: str, result: Reader) -> Pair | None:
    """Return the pair of two pictures by their keys; None where one is no longer in the output."""
    try:
        one, other = (RankedRow(0.0, 0, *result.place(row[name])) for name in ("a", "b"))
    except UserError:
        return None
    return Pair(row["same"], words, (one, other))


def _place(row: int, ends: Any) -> RankedRow:
    part = int(np.searchsorted(ends, row, side="right"))
    return RankedRow(0.0, 0, part, row - (int(ends[part - 1]) if part else 0))


def with_one_face(row: Mapping[str, Any], face: int | None) -> dict[str, Any]:
    """Return a row with one of its faces alone; as it is where there is none."""
    return dict(row) if face is None or not row.get("objects") else {**row, "objects": [row["objects"][face]]}
