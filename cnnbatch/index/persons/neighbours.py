"""Which vectors may be of one person: the nearest of each, exactly where that is cheap, else by lists.

Lists are as many as the vectors ask for, so that the time grows little faster than their number. What is
missed is a neighbour of some vectors of a person, seldom of all, and the next round looks at the means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cnnbatch.index.codebook import imported
from cnnbatch.index.exact import search_exactly

NEAR = 10
"""Neighbours of each vector."""

_EXACTLY = 25_000_000  # products up to which all are computed
_IN_A_LIST = 100
_LISTS_LOOKED_AT = 8
_ROUNDS, _SAMPLE, _SEED = 6, 64, 1  # of the k-means that makes the lists

Floats = NDArray[np.float32]


def edges(means: Floats, sought: NDArray[np.int64], least: float) -> NDArray[np.int64]:
    """Return pairs (E, 2) of vectors (N, D) whose scalar product is at least ``least``, sorted, once each.

    They are each of ``sought`` (S,) with the `NEAR` most similar of all.
    """
    if not len(sought):
        return np.empty((0, 2), np.int64)
    count = min(NEAR + 1, len(means))
    if len(sought) * len(means) <= _EXACTLY:
        scores, found = search_exactly(means[sought], means, count)
    else:
        scores, found = _by_lists(means, sought, count)
    lines, columns = np.nonzero((scores >= least) & (found >= 0) & (found != sought[:, None]))
    pairs = np.sort(np.stack([sought[lines], found[lines, columns]], axis=1), axis=1)
    return np.unique(pairs, axis=0)


def _by_lists(
    means: Floats, sought: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    faiss = imported()
    lists = len(means) // _IN_A_LIST
    trained = faiss.Kmeans(
        means.shape[1],
        lists,
        niter=_ROUNDS,
        max_points_per_centroid=_SAMPLE,
        spherical=True,
        seed=_SEED,
    )
    trained.train(means)
    quantizer = faiss.IndexFlatIP(means.shape[1])
    quantizer.add(trained.centroids)
    index = faiss.IndexIVFFlat(quantizer, means.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.add(means)
    index.nprobe = _LISTS_LOOKED_AT
    scores, found = index.search(np.ascontiguousarray(means[sought]), count)
    return scores, found
