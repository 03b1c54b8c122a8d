"""Which rows make a segment."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.index.plan import Piece, PlannedSegment, cut

Numbers = list[list[int]]


def planned(parts: Numbers, most: int) -> list[PlannedSegment]:
    pieces = [
        (Piece(0, part, "d", range(len(one))), np.array(one, np.int64)) for part, one in enumerate(parts)
    ]
    return [*cut(pieces, most)]


@given(st.lists(st.lists(st.integers(0, 7), max_size=12), max_size=8), st.integers(1, 10))
def test_every_row_with_an_embedding_is_in_one_segment_in_order(parts: Numbers, most: int) -> None:
    segments = planned(parts, most)
    rows = [(piece.part, row) for one in segments for piece in one.pieces for row in piece.rows]
    assert rows == sorted(set(rows))
    assert {(p, r) for p, one in enumerate(parts) for r, n in enumerate(one) if n} <= set(rows)


@given(st.lists(st.lists(st.integers(0, 7), max_size=12), max_size=8), st.integers(1, 10))
def test_segments_are_as_full_as_whole_rows_allow(parts: Numbers, most: int) -> None:
    segments = planned(parts, most)
    counts = [[parts[piece.part][row] for piece in one.pieces for row in piece.rows] for one in segments]
    for segment, numbers in zip(segments, counts, strict=True):
        assert segment.count == sum(numbers) > 0
        assert segment.count <= most or len([n for n in numbers if n]) == 1
    for before, after in zip(counts, counts[1:], strict=False):
        first = next(n for n in after if n)
        assert sum(before) + first > most, "the next row had fitted in"


def test_rows_that_are_chosen_keep_their_numbers() -> None:
    piece = Piece(1, 3, "d", (2, 5, 9))
    segments = [*cut([(piece, np.array([1, 1, 1]))], 2)]
    assert [[*one.pieces[0].rows] for one in segments] == [[2, 5], [9]]
    assert segments[0].pieces[0].contents() == [1, 3, "d", [2, 5]]
