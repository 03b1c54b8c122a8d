"""An epoch as pure functions: a seeded permutation, cut into steps, each step dealt to the workers.

A step's images follow from seed, epoch and keys alone; so one worker and four see the same images in the
same step, and a run that is continued sees what it would have seen. Each image comes once an epoch.
Containers are read in runs: those are permuted, and images change places only within a buffer of some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

RUN = 256
"""Images of a container that are read together."""
BUFFER = 4096
"""Images of a container among which order is by chance."""


def key_hashes(keys: Iterable[str]) -> Hashes:
    """Return a number for each key, [N]."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, np.uint64)


def mixed(hashes: Hashes, *numbers: int) -> Hashes:
    """Return other hashes that follow from ``hashes`` [N] and some numbers.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    found = hashes.copy()
    with np.errstate(over="ignore"):
        for number in numbers:
            found += np.uint64((number + 1) * 0x9E3779B97F4A7C15 % 2**64)
            found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            found ^= found >> np.uint64(31)
    return found


def order(hashes: Hashes, seed: int, epoch: int, runs: Places | None = None) -> Places:
    """Return the places of all images, [N], in the order of an epoch.

    ``runs`` [N] numbers the run of each image of a container, ascending; None: files of their own.
    """
    of_images = mixed(hashes, seed, epoch)
    if runs is None:
        return np.argsort(of_images, kind="stable")
    first = np.flatnonzero(np.diff(runs, prepend=-1))  # the first image of each run
    of_runs = np.repeat(of_images[first], np.diff(np.append(first, len(runs))))
    places = np.lexsort((np.arange(len(runs)), of_runs))
    for start in range(0, len(places), BUFFER):
        window = places[start : start + BUFFER]
        places[start : start + BUFFER] = window[np.argsort(of_images[window], kind="stable")]
    return places


def count_steps(images: int, batch: int) -> int:
    """Return the number of steps of an epoch: the fewest of at most ``batch`` images."""
    return -(-images // batch)


def step(places: Places, batch: int, number: int) -> Places:
    """Return the images of one step; no two steps' numbers differ by more than one."""
    steps, count = count_steps(len(places), batch), len(places)
    return places[number * count // steps : (number + 1) * count // steps]


def share(of_step: Places, rank: int, world: int) -> Places:
    """Return what of a step is a worker's; no two workers' numbers differ by more than one."""
    count = len(of_step)
    return of_step[rank * count // world : (rank + 1) * count // world]


def dealt(places: Places, batch: int, rank: int, world: int, first: int = 0) -> Iterator[Places]:
    """Yield a worker's images step by step, beginning with step ``first``."""
    for number in range(first, count_steps(len(places), batch)):
        yield share(step(places, batch, number), rank, world)
