"""The 95 % intervals: Wilson's for a share of yes and no, else a Poisson bootstrap over images.

An image's weight in a replicate follows from its key alone, so replicates merge as counts do and are
the same on every split. The price against resampling exactly N images is a slightly wider interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from math import exp, factorial, sqrt

import numpy as np
from numpy.typing import NDArray

REPLICATES = 200
"""Replicates of the bootstrap."""
FEW_REPLICATES = 50
"""Replicates where there is much to count in each."""

_Z = 1.959963984540054  # The normal distribution's 97.5 % point.
_SHARES = np.cumsum([exp(-1) / factorial(count) for count in range(13)])
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def wilson(successes: int, count: int) -> tuple[float, float] | tuple[None, None]:
    """Return Wilson's score interval of ``successes / count`` (Wilson 1927); None where that is empty."""
    if not count:
        return None, None
    share, spread = successes / count, _Z * _Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def key_hashes(keys: Iterable[str]) -> NDArray[np.uint64]:
    """Return a number that stands for each key: its BLAKE2b hash, uint64 (N,)."""
    digests = [blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def hash_weights(hashes: NDArray[np.uint64], replicates: range) -> NDArray[np.uint8]:
    """Return how often each key counts in some replicates, uint8 (N, replicates): Poisson of mean 1.

    Chamandy, Muralidharan, Najmi, Naidu: Estimating uncertainty for massive data streams (2012); the
    uniform number behind each is splitmix64 of the key's hash and the replicate's number.
    """
    steps = np.array(replicates, np.uint64) * _GOLDEN
    uniform = (_mixed(hashes[:, None] + steps) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.searchsorted(_SHARES, uniform, side="right").astype(np.uint8)


def poisson_weights(keys: Iterable[str], replicates: int = REPLICATES) -> NDArray[np.uint8]:
    """Return `hash_weights` of the keys themselves, uint8 (N, replicates)."""
    return hash_weights(key_hashes(keys), range(replicates))


def percentiles(replicates: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Return the 2.5 % and 97.5 % percentiles of a number's replicates; those that are NaN are left out."""
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014), the finaliser."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
