"""How well groups are the persons whose pictures they hold: pairs, and B-cubed, each with intervals.

All follow from how many items of each person lie in each group. The intervals are a Poisson bootstrap over
persons: pictures of one person are no independent trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import REPLICATES, hash_weights, key_hashes
from cnnbatch.metrics.values import bootstrapped, ratio

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cells:
    """The items of each person in each group: ``counts`` (C,) of person ``persons`` and group ``groups``."""

    names: NDArray[np.uint64]
    persons: NDArray[np.int64]
    groups: NDArray[np.int64]
    counts: Counts


def cells(names: Sequence[str], groups: NDArray[np.int64]) -> Cells:
    """Return the cells of N items: the true person of each, and the number of the group it lies in."""
    persons, person = np.unique(key_hashes(names), return_inverse=True)
    _, group = np.unique(groups, return_inverse=True)
    pairs, counts = np.unique(np.stack([person, group]), axis=1, return_counts=True)
    return Cells(persons, pairs[0], pairs[1], counts.astype(np.float64))


def result(of: Cells, replicates: int = REPLICATES) -> dict[str, Value]:
    """Return precision, recall and F1 of pairs and of items (B-cubed), with intervals over persons.

    Of pairs: the share of those in one group that are of one person, and of those of one person that are in
    one group. B-cubed (Bagga and Baldwin 1998, "Entity-based cross-document coreferencing using the vector
    space model"): the mean over items of the share of its group that is of its person, and of its person
    that is in its group.
    """
    weights = hash_weights(of.names, range(replicates)).astype(np.float64)
    drawn = np.concatenate([np.ones((len(of.names), 1)), weights], axis=1)
    numbers = np.stack([_numbers(of, weight) for weight in drawn.T], axis=1)
    items, names = int(of.counts.sum()), ("precision", "recall", "F1")
    keys = [f"{kind}_{name}" for kind in ("pair", "bcubed") for name in names]
    return {key: bootstrapped(each, items) for key, each in zip(keys, numbers, strict=True)}


def _numbers(of: Cells, weights: Counts) -> Counts:
    """Return the six numbers where each person counts as often as ``weights`` (P,) say."""
    times = weights[of.persons]
    per_group = np.bincount(of.groups, times * of.counts)
    own = np.bincount(of.groups, times * of.counts**2)
    # A person who is drawn twice is two persons of the same pictures, whose pairs are no question.
    others = (per_group**2 - np.bincount(of.groups, (times * of.counts) ** 2)).sum() / 2
    together = (own - np.bincount(of.groups, times * of.counts)).sum() / 2
    sizes = np.bincount(of.persons, of.counts)
    alike = (weights * sizes * (sizes - 1)).sum() / 2
    pairs = _scores(together, together + others, alike)
    total = times * of.counts
    group_sizes = np.bincount(of.groups, of.counts)
    precision = _share((total * of.counts / group_sizes[of.groups]).sum(), total.sum())
    recall = _share((total * of.counts / sizes[of.persons]).sum(), total.sum())
    return np.array([*pairs, precision, recall, _harmonic(precision, recall)])


def _scores(both: float, found: float, true: float) -> tuple[float, float, float]:
    precision, recall = _share(both, found), _share(both, true)
    return precision, recall, _harmonic(precision, recall)


def _share(part: float, whole: float) -> float:
    return float(ratio(np.array(part), np.array(whole)))


def _harmonic(one: float, other: float) -> float:
    return float(ratio(np.array(2 * one * other), np.array(one + other)))
