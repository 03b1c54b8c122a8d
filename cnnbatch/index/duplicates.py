"""Near duplicates within an index: groups of rows that are connected by a similarity of at least so much.

Every pair is compared, by an upper bound of its cosine first, so nothing is missed; the time grows with the
square of the number of rows. Memory holds two blocks of vectors, and a number a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.index.bounds import ROUNDING, Bounds, Pairs, best_bounds, pairs_above
from cnnbatch.index.exact import Vectors, similarities

BLOCK_ROWS = 4_096
"""Rows that are compared with as many others at once."""

_ROWS_AT_ONCE = 65_536
_PAIRS_AT_ONCE = 65_536


def similar_pairs(
    vectors: Vectors,
    rows: NDArray[np.int64],
    least: float,
    advance: Callable[[int], None] = lambda rows: None,
) -> Iterator[Pairs]:
    """Yield the places in ``rows`` (N,) of pairs whose cosine is at least ``least``, the earlier ones first.

    ``advance`` is called with the number of rows that have been compared with all behind them.
    """
    bounds = best_bounds(vectors, rows, least)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = np.asarray(vectors[rows[start : start + BLOCK_ROWS]], np.float32)
        for other in range(start, len(rows), BLOCK_ROWS):
            against = np.asarray(vectors[rows[other : other + BLOCK_ROWS]], np.float32)
            for first, second in _similar(block, against, least, bounds):
                first, second = first + start, second + other
                yield first[first < second], second[first < second]
        advance(len(block))


def _similar(
    block: NDArray[np.float32], against: NDArray[np.float32], least: float, bounds: Bounds | None
) -> Iterator[Pairs]:
    """Yield the places of rows of two blocks (N, D) and (M, D) whose cosine is at least ``least``."""
    if bounds is None:
        yield from pairs_above(block, against, least)
        return
    short = bounds.of(against)
    for found in pairs_above(bounds.of(block), short, least - ROUNDING):
        for start in range(0, len(found[0]), _PAIRS_AT_ONCE):
            first, second = (places[start : start + _PAIRS_AT_ONCE] for places in found)
            similar = np.einsum("nd,nd->n", block[first], against[second]) >= least
            yield first[similar], second[similar]


class Groups:
    """Which of ``count`` things are connected: each has the number of the first in its group."""

    def __init__(self, count: int) -> None:
        self._first = np.arange(count)

    def connect(self, pairs: Pairs) -> None:
        """Connect pairs, by hooking the later root of each to the earlier until none is left."""
        one, other = pairs
        while len(one):
            one, other = self._roots(one), self._roots(other)
            apart = one != other
            one, other = one[apart], other[apart]
            np.minimum.at(self._first, np.maximum(one, other), np.minimum(one, other))

    def first(self) -> NDArray[np.int64]:
        """Return of each thing the first in its group, (N,)."""
        return self._roots(np.arange(len(self._first)))

    def _roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        roots = self._first[numbers]
        while len(roots) and (roots != (above := self._first[roots])).any():
            roots = above
        self._first[numbers] = np.minimum(self._first[numbers], roots)
        return roots


def grouped_rows(
    vectors: Vectors,
    rows: NDArray[np.int64],
    least: float,
    lookup: Callable[[NDArray[np.int64]], pa.Table],
    advance: Callable[[int], None],
) -> pa.Table:
    """Return the rows that have a near duplicate, each as ``lookup`` has it, with its group.

    ``group`` counts from 0, in the order of the first rows, by output and id; ``similarity`` is the cosine
    with the first row of the group.
    """
    groups = Groups(len(rows))
    for pairs in similar_pairs(vectors, rows, least, advance):
        groups.connect(pairs)
    roots = groups.first()
    sizes = np.bincount(roots, minlength=len(rows))
    members = np.flatnonzero(sizes[roots] > 1)
    table = pa.concat_tables(
        lookup(rows[members[start : start + _ROWS_AT_ONCE]])
        for start in range(0, max(1, len(members)), _ROWS_AT_ONCE)
    )
    table = table.append_column("", pa.array(members)).append_column(" ", pa.array(roots[members]))
    table = table.sort_by([("output", "ascending"), ("id", "ascending")])
    return _numbered(table, vectors, rows)


def _numbered(table: pa.Table, vectors: Vectors, rows: NDArray[np.int64]) -> pa.Table:
    """Return rows in the order of their groups, each with its group and its similarity to the first."""
    members, roots = table[""].to_numpy(), table[" "].to_numpy()
    _, seen, of = np.unique(roots, return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(seen))[of]  # by the first row of each group
    firsts = members[seen][of]
    queries = np.asarray(vectors[rows[firsts]], np.float32)
    near = similarities(queries, vectors, rows[members][:, None])[:, 0]
    order = np.argsort(group, kind="stable")
    table = table.drop_columns(["", " "]).add_column(0, "group", pa.array(group))
    return table.append_column("similarity", pa.array(near)).take(order)
