"""Approximate search: all codes are scanned, and the best few are compared by their vectors.

FAISS's fast scan of 4-bit codes (André et al. 2015) reads 16 times less than the vectors have. There are no
lists of neighbours, no graph: rows that are added or gone change nothing for the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.codebook import BITS, Codebook, imported, padded
from cnnbatch.index.exact import Found, Vectors, ranked


class FastScan:
    """The codes (N, C) of some ``rows`` of an index, in memory; None: of all rows."""

    def __init__(
        self, codebook: Codebook, codes: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
    ) -> None:
        faiss = imported()
        parts = len(codebook.centroids)
        self._rows = rows
        plain = faiss.IndexPQ(parts * codebook.centroids.shape[2], parts, BITS, faiss.METRIC_INNER_PRODUCT)
        codebook.set_in(plain.pq)
        plain.is_trained = True
        chosen = codes if rows is None else codes[rows]
        plain.add_sa_codes(np.ascontiguousarray(chosen))
        self._index = faiss.IndexPQFastScan(plain)

    def candidates(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return the rows (Q, count) whose codes are most similar to each query (Q, D); -1: no more."""
        _, found = self._index.search(padded(queries), min(count, self._index.ntotal))
        if self._rows is None:
            return np.asarray(found, np.int64)
        return np.where(found < 0, -1, self._rows[found])


def search_approximately(
    queries: NDArray[np.float32], scan: FastScan, vectors: Vectors, k: int, refine: int, spare: int = 0
) -> Found:
    """Return of ``refine`` times ``k`` candidates of each query (Q, D) the most similar, by their vectors.

    ``spare`` more than ``k`` are returned; fewer where there are fewer.
    """
    rows = scan.candidates(queries, max(k * refine, k + spare))
    scores, rows = ranked(queries, vectors, rows)
    return scores[:, : k + spare], rows[:, : k + spare]
