"""Exact search: every query beside every vector, block by block, so that memory stays small."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.codebook import imported

BLOCK_BYTES = 32 << 20
"""What a block of vectors takes as float32."""

Vectors = NDArray[np.float16]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Similarities and rows (Q, K), the most similar first; -inf and -1 where there are no more."""


def search_exactly(
    queries: NDArray[np.float32], vectors: Vectors, k: int, rows: NDArray[np.int64] | None = None
) -> Found:
    """Return the ``k`` vectors (N, D) that are most similar to each query (Q, D), by the scalar product.

    With ``rows`` only these are compared.
    """
    faiss = imported()
    count = len(vectors) if rows is None else len(rows)
    step = max(1, BLOCK_BYTES // (4 * vectors.shape[1]))
    best = _nothing(len(queries), k)
    for start in range(0, count, step):
        chosen: Any = slice(start, start + step) if rows is None else rows[start : start + step]
        block = np.asarray(vectors[chosen], np.float32)
        scores, places = faiss.knn(queries, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
        numbers = places + start if rows is None else rows[places + start]
        best = _merged(best, (scores, numbers), k)
    return best


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
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _nothing(queries: int, k: int) -> Found:
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)


def _merged(one: Found, other: Found, k: int) -> Found:
    """Return the best of both, of equal ones those of the first."""
    scores = np.concatenate([one[0], other[0]], axis=1)
    rows = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
