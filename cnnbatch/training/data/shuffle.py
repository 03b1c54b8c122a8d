"""An epoch as pure functions: a seeded permutation, cut into steps, each step dealt to the workers.

A step's images follow from seed, epoch and keys alone; so one worker and four see the same images in the
same step, and a run that is continued sees what it would have seen. Each image comes once an epoch.
Containers are read in runs: those are permuted, and images change places only within a buffer of some.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

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


def cut(places: Places, batch: int) -> list[Places]:
    """Return the images of each step of an epoch; no two steps' numbers differ by more than one."""
    steps, count = count_steps(len(places), batch), len(places)
    return [places[number * count // steps : (number + 1) * count // steps] for number in range(steps)]


def balanced(
    hashes: Hashes, classes: Places, seed: int, epoch: int, batch: int, pictures: int
) -> list[Places]:
    """Return the steps of an epoch in which classes come with ``pictures`` images each.

    ``classes`` [N] are numbers. Of each class the images are cut, in an order by chance, into groups of
    ``pictures``; one that is left over joins another group. A step has at least two groups, as far as there
    are so many, and about ``batch`` images. Each image comes once an epoch; the number of steps is the same
    in all.
    """
    of_images = mixed(hashes, seed, epoch)
    places = np.lexsort((of_images, classes))  # [N], class by class
    begins = np.flatnonzero(np.diff(classes[places], prepend=-2))
    counts = np.diff(np.append(begins, len(places)))
    since = np.arange(len(places)) - np.repeat(begins, counts)
    sizes = np.repeat(counts, counts)
    rounds = (
        np.where((since == sizes - 1) & (since % pictures == 0) & (since > 0), since - 1, since) // pictures
    )
    first = np.flatnonzero((np.diff(classes[places], prepend=-2) != 0) | (np.diff(rounds, prepend=-1) != 0))
    groups = np.split(places, first[1:])
    order_of_groups = np.lexsort((mixed(hashes[places[first]], seed, epoch, 1), rounds[first]))
    count = max(1, min(-(-len(places) // batch), len(groups) // 2))
    return [
        np.concatenate([groups[group] for group in some]) for some in np.array_split(order_of_groups, count)
    ]


def of_classes(hashes: Hashes, classes: Places, most: int, each: int) -> Places:
    """Return at most so many images, in their order, most of which have others of their class among them.

    They are taken by ``each`` of a class: the first of every class, by hashes, then the second, and so on.
    ``classes`` (N,) are numbers.
    """
    keys = mixed(hashes, most)
    order = np.lexsort((keys, classes))  # [N], by class
    _, first, counts = np.unique(classes[order], return_index=True, return_counts=True)
    since = np.arange(len(order)) - np.repeat(first, counts)  # Of each image its place in its class.
    least = np.repeat(keys[order[first]], counts)  # Of each image the least hash of its class.
    chosen = np.lexsort((since, least, since // each))[:most]
    return np.sort(order[chosen])


def share(of_step: Places, rank: int, world: int) -> Places:
    """Return what of a step is a worker's; no two workers' numbers differ by more than one."""
    count = len(of_step)
    return of_step[rank * count // world : (rank + 1) * count // world]


def dealt(steps: Iterable[Places], rank: int, world: int) -> list[Places]:
    """Return a worker's images of each of the ``steps``."""
    return [share(one, rank, world) for one in steps]
