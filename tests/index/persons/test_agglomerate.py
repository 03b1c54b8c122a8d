"""Average linkage beside SciPy's on all pairs, and what people said beside brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from cnnbatch.index.persons.agglomerate import Groups
from tests.embedded import people


def partition(roots: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(roots == root).tolist()) for root in roots}


@given(st.integers(0, 30), st.floats(-0.2, 0.9))
def test_with_all_pairs_connected_it_is_average_linkage(seed: int, least: float) -> None:
    vectors = people(24, seed, each=4)
    groups = Groups(vectors, [1] * 24, combinations(range(24), 2))
    groups.merge_all(least)
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    tree = linkage(1 - products[np.triu_indices(24, 1)], "average")
    assert partition(groups.roots()) == partition(fcluster(tree, 1 - least, "distance"))
    similar = [one.similarity for one in groups.merges]
    assert similar == pytest.approx((1 - tree[: len(similar), 2]).tolist(), abs=1e-5)


@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=12),
    st.sets(st.integers(0, 19), max_size=4),
)
def test_what_is_apart_stays_apart_and_fixed_groups_stay_two(
    seed: int, apart: list[tuple[int, int]], fixed: set[int]
) -> None:
    vectors = people(20, seed, each=10)
    groups = Groups(vectors, [1] * 20, combinations(range(20), 2), apart, fixed)
    groups.merge_all(-1)
    roots = groups.roots()
    forbidden = {pair for pair in apart if pair[0] != pair[1]} | {*combinations(fixed, 2)}
    assert all(roots[a] != roots[b] for a, b in forbidden)
    for one, other in combinations(partition(roots), 2):  # Whatever could still be one is forbidden.
        assert any((a, b) in forbidden or (b, a) in forbidden for a in one for b in other)


def test_only_what_the_graph_connects_is_merged() -> None:
    vectors = np.tile(people(1), (4, 1))
    groups = Groups(vectors, [1] * 4, [(0, 1), (2, 3)])
    groups.merge_all(0.5)
    assert partition(groups.roots()) == {frozenset({0, 1}), frozenset({2, 3})}


def test_a_group_that_is_given_counts_as_all_that_it_holds() -> None:
    vectors = people(30, each=10)
    whole = Groups(vectors, [1] * 30, combinations(range(30), 2))
    whole.merge_all(0.3)
    half = Groups(np.stack([vectors[:10].sum(0), *vectors[10:]]), [10, *[1] * 20], combinations(range(21), 2))
    half.merge_all(0.3)
    expanded = np.concatenate([np.repeat(half.roots()[0], 10), half.roots()[1:]])
    assert partition(whole.roots()) == partition(expanded)
