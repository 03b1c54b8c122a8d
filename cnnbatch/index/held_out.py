"""Which vectors never train a codebook, so that recall can be measured with them at any later time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARE = 16
"""One in so many vectors is held out."""

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # Of SplitMix64 (Steele et al. 2014).


def numbers_of(vectors: NDArray[np.float16]) -> NDArray[np.uint64]:
    """Return a number (N,) for each vector (N, D): it follows from its first four values."""
    first = np.zeros((len(vectors), 4), np.float16)
    width = min(4, vectors.shape[1])
    first[:, :width] = vectors[:, :width]
    mixed = first.view(np.uint64).ravel().copy()
    for factor, shift in zip(_MIX, (30, 27), strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * factor
    return mixed ^ (mixed >> np.uint64(31))


def is_held_out(vectors: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Say of each vector (N, D) whether it is held out."""
    return np.asarray(numbers_of(vectors) % np.uint64(SHARE) == 0, np.bool_)
