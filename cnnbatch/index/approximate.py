"""Approximate search: codes are scanned, and the best few are compared by their vectors.

FAISS's fast scan of 4-bit codes (André et al. 2015) reads 16 times less than the vectors have. It scans all
codes or, of an index with inverted lists, those of the lists that are most similar to the query. Rows that
are added or gone change nothing for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.codebook import BITS, PART, Codebook, imported, padded
from cnnbatch.index.exact import Found, Vectors, ranked

if TYPE_CHECKING:
    import faiss

_AT_ONCE = 64
"""Codes that are scanned together: twice FAISS's default, which takes a seventh less time."""


class FastScan:
    """The codes (N, C) of some ``rows`` of an index, in memory; None: of all rows.

    ``probes``: so many inverted lists are scanned for a query, where there are any.
    """

    def __init__(
        self,
        codebook: Codebook,
        codes: NDArray[np.uint8],
        rows: NDArray[np.int64] | None = None,
        probes: int = 0,
    ) -> None:
        faiss = imported()
        self._rows = rows
        self._coarse = None if codebook.lists is None else _coarse(codebook.lists)
        plain = _plain(codebook, self._coarse)
        plain.add_sa_codes(np.ascontiguousarray(codes if rows is None else codes[rows]))
        if self._coarse is None:
            self._index = faiss.IndexPQFastScan(plain, _AT_ONCE)
        else:
            self._index = faiss.IndexIVFPQFastScan(plain)
        self.over(probes)

    def over(self, probes: int) -> FastScan:
        """Return this scan, which from now on scans so many lists for a query."""
        if self._coarse is not None:
            self._index.nprobe = probes
        return self

    def candidates(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Return the rows (Q, count) whose codes are most similar to each query (Q, D); -1: no more."""
        _, found = self._index.search(padded(queries), min(count, self._index.ntotal))
        if self._rows is None:
            return np.asarray(found, np.int64)
        return np.where(found < 0, -1, self._rows[found])


def _coarse(lists: NDArray[np.float32]) -> faiss.IndexFlatIP:
    found: faiss.IndexFlatIP = imported().IndexFlatIP(lists.shape[1])
    found.add(lists)
    return found


def _plain(codebook: Codebook, coarse: faiss.IndexFlatIP | None) -> Any:
    """Return an empty index with the centroids of a codebook, as FAISS has it before codes are packed."""
    faiss = imported()
    parts = len(codebook.centroids)
    form = (parts, BITS, faiss.METRIC_INNER_PRODUCT)
    found: Any
    if coarse is None:
        found = faiss.IndexPQ(PART * parts, *form)
    else:
        found = faiss.IndexIVFPQ(coarse, PART * parts, coarse.ntotal, *form)
        found.by_residual = False
    codebook.set_in(found.pq)
    found.is_trained = True
    return found


def search_approximately(
    queries: NDArray[np.float32], scan: FastScan, vectors: Vectors, k: int, refine: int, spare: int = 0
) -> Found:
    """Return of ``refine`` times ``k`` candidates of each query (Q, D) the most similar, by their vectors.

    ``spare`` more than ``k`` are returned; fewer where there are fewer.
    """
    rows = scan.candidates(queries, max(k * refine, k + spare))
    scores, rows = ranked(queries, vectors, rows)
    return scores[:, : k + spare], rows[:, : k + spare]
