"""Exact search: every query beside every vector, block by block, so that memory stays small."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.codebook import imported

BLOCK_BYTES = 32 << 20
"""What a block of vectors takes as float32."""

PRODUCT_BYTES = 4 << 20
"""What the products of some queries and a block take, so that they stay in the cache."""

_SOME = range(20, 512)
"""Numbers of queries for which NumPy multiplies faster than FAISS."""

Vectors = NDArray[np.float16]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Similarities and rows (Q, K), the most similar first; -inf and -1 where there are no more."""


def search_exactly(
    queries: NDArray[np.float32],
    vectors: Vectors | NDArray[np.float32],
    k: int,
    rows: NDArray[np.int64] | None = None,
) -> Found:
    """Return the ``k`` vectors (N, D) that are most similar to each query (Q, D), by the scalar product.

    With ``rows`` only these are compared.
    """
    count = len(vectors) if rows is None else len(rows)
    step = max(1, BLOCK_BYTES // (4 * vectors.shape[1]))
    if len(queries) in _SOME:
        step = max(1, min(step, PRODUCT_BYTES // (4 * len(queries))))
    best = _nothing(len(queries), k)
    for start in range(0, count, step):
        chosen: Any = slice(start, start + step) if rows is None else rows[start : start + step]
        block = np.asarray(vectors[chosen], np.float32)
        scores, places = _best(queries, block, k, best[0][:, -1])
        numbers = places + start if rows is None else rows[places + start]
        best = _merged(best, (scores, np.where(places < 0, -1, numbers)), k)
    return best


def _best(
    queries: NDArray[np.float32], block: NDArray[np.float32], k: int, floor: NDArray[np.float32]
) -> Found:
    """Return the best of a block (B, D) for each query, of those above its ``floor`` (Q,).

    FAISS is fastest for few queries and for many. In between, NumPy's product of matrices is up to four
    times faster; once every query has ``k`` vectors, hardly any other is above the floor.
    """
    if len(queries) not in _SOME or not np.isfinite(floor).all():
        faiss = imported()
        scores, places = faiss.knn(queries, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
        return scores, places
    products = queries @ block.T
    higher = np.flatnonzero(products.max(axis=1) > floor)
    among, columns = np.nonzero(products[higher] > floor[higher, None])
    lines = higher[among]
    counts = np.bincount(lines, minlength=len(queries))
    within = np.arange(len(lines)) - (np.cumsum(counts) - counts)[lines]
    found = _nothing(len(queries), int(counts.max()))
    found[0][lines, within], found[1][lines, within] = products[lines, columns], columns
    return found


def similarities(
    queries: NDArray[np.float32], vectors: Vectors, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the scalar product of each query (Q, D) with its own rows (Q, K); -inf where a row is -1.

    It does not depend on where a vector lies, nor on what is computed beside it.
    """
    found = np.empty(rows.shape, np.float32)
    step = max(1, BLOCK_BYTES // (8 * max(1, rows.shape[1]) * vectors.shape[1]))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        block = vectors[some.ravel()].reshape(*some.shape, -1).astype(np.float32)
        block *= queries[start : start + step, None]
        found[start : start + step] = block.sum(axis=2, dtype=np.float64)
    found[rows < 0] = -np.inf
    return found


def ranked(queries: NDArray[np.float32], vectors: Vectors, rows: NDArray[np.int64]) -> Found:
    """Return the rows (Q, K) of each query, the most similar first, with their `similarities`."""
    scores = similarities(queries, vectors, rows)
    order = np.argsort(-scores, axis=1, kind="stable")
    lines = np.arange(len(rows))[:, None]
    return scores[lines, order], rows[lines, order]


def _nothing(queries: int, k: int) -> Found:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)


def _merged(one: Found, other: Found, k: int) -> Found:
    """Return the best of both, of equal ones those of the first."""
    scores = np.concatenate([one[0], other[0]], axis=1)
    rows = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
