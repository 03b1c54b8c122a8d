"""Upper bounds of cosines from a few numbers a vector, so that most pairs need not be compared whole.

Of two vectors, split into their parts inside and outside of a subspace, the scalar product is at most that of
the parts inside plus the product of the lengths of those outside (Cauchy and Schwarz). Where this is too
small, so is the cosine: a pair that counts is never missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.exact import Vectors

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]

ROUNDING = 1e-5
"""By how much a bound in float32 may be too small: some ten times what was seen."""
WHOLE = 400
"""So many pairs are bounded in the time in which one of them is looked up and compared whole."""

_SAMPLE = 1_024
_SHARES = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)  # of the dimensions, which are tried as subspaces
_LOOK = 16  # What it costs to look at a bound, as dimensions
_LOOK_AGAIN = 60  # and in a line with one that is high enough
_LINE = 4_096  # bounds, about
_LINES_AT_ONCE = 128  # which fit in the cache


@dataclass(frozen=True, slots=True)
class Bounds:
    """An orthonormal ``basis`` (D, K) of the subspace; of all D dimensions bounds are the cosines."""

    basis: NDArray[np.float32]

    def of(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (N, K + 1) of vectors (N, D): the scalar product of two of these is the bound."""
        inside = vectors @ self.basis
        lengths = np.einsum("nd,nd->n", vectors, vectors)
        outside = np.sqrt(np.maximum(lengths - np.einsum("nk,nk->n", inside, inside), 0))
        return np.column_stack([inside, outside])


def best_bounds(vectors: Vectors, rows: NDArray[np.int64], least: float) -> Bounds | None:
    """Return bounds for finding pairs of ``rows`` whose cosine is at least ``least``, by a sample of them.

    None where it is as fast to compare vectors whole.
    """
    chosen = rows[np.unique(np.linspace(0, max(0, len(rows) - 1), _SAMPLE, dtype=np.int64))]
    sample = np.asarray(vectors[chosen], np.float32)
    basis = np.ascontiguousarray(np.linalg.eigh(sample.T @ sample)[1][:, ::-1], np.float32)
    dimensions = sample.shape[1]
    best, cost = None, float(dimensions + _LOOK)
    for kept in _SHARES:
        bounds = Bounds(np.ascontiguousarray(basis[:, : max(1, int(kept * dimensions))]))
        short = bounds.of(sample)
        passing = (short @ short.T >= least - ROUNDING)[np.triu_indices(len(short), 1)]
        share = float(passing.mean()) if len(passing) else 0.0
        found = short.shape[1] + _LOOK + _LOOK_AGAIN * min(1, _LINE * share) + WHOLE * dimensions * share
        if found < cost:
            best, cost = bounds, found
    return best


def pairs_above(one: NDArray[np.float32], other: NDArray[np.float32], least: float) -> Iterator[Pairs]:
    """Yield the places of rows of (N, K) and of (M, K) whose scalar product is at least ``least``."""
    for start in range(0, len(one), _LINES_AT_ONCE):
        products = one[start : start + _LINES_AT_ONCE] @ other.T
        lines = np.flatnonzero(products.max(axis=1) >= least)
        first, second = np.nonzero(products[lines] >= least)
        yield lines[first] + start, second
