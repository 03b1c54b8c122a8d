"""Which rows make a segment: pure, so that the same outputs give the same segments whoever makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Piece:
    """Some ascending ``rows`` of one part of an output, which has this digest."""

    output: int
    part: int
    digest: str
    rows: Sequence[int]

    def contents(self) -> list[object]:
        """Return what tells it from any other piece, as JSON values."""
        rows = [self.rows.start, self.rows.stop] if isinstance(self.rows, range) else [*self.rows]
        return [self.output, self.part, self.digest, rows]


Pieces = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """What a segment is to be made of, and how many embeddings it has at most."""

    pieces: Pieces
    count: int


def cut(pieces: Iterable[tuple[Piece, NDArray[np.int64]]], most: int) -> Iterator[PlannedSegment]:
    """Yield segments in order, each of as many rows as have at most ``most`` embeddings together.

    Each piece comes with the number of embeddings (N,) of each of its N rows. A row is never divided: one
    with more than ``most`` is a segment of its own. Pieces without an embedding are in none.
    """
    segment: list[Piece] = []
    count = 0
    for piece, numbers in pieces:
        start = 0
        while start < len(numbers):
            filled = np.cumsum(numbers[start:])
            fitting = int(np.searchsorted(filled, most - count, "right"))
            if fitting == 0 and count:
                yield PlannedSegment(tuple(segment), count)
                segment, count = [], 0
                continue
            end = start + max(1, fitting)
            if more := int(numbers[start:end].sum()):
                segment.append(Piece(piece.output, piece.part, piece.digest, piece.rows[start:end]))
            start, count = end, count + more
    if segment:
        yield PlannedSegment(tuple(segment), count)
