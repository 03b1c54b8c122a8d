"""Precision and recall of groups beside brute force, and beside scikit-learn's counts of pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.cluster import pair_confusion_matrix

from cnnbatch.metrics.clustering import cells, result

ITEMS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30)


@given(ITEMS)
def test_pairs_and_items_are_counted_as_by_hand(items: list[tuple[int, int]]) -> None:
    names, groups = [str(person) for person, _ in items], np.array([group for _, group in items])
    found = {name: value.value for name, value in result(cells(names, groups), replicates=1).items()}
    both = sum(a == b for a, b in combinations(items, 2))
    of_group = sum(a[1] == b[1] for a, b in combinations(items, 2))
    of_person = sum(a[0] == b[0] for a, b in combinations(items, 2))
    assert found["pair_precision"] == pytest.approx(both / of_group if of_group else np.nan, nan_ok=True)
    assert found["pair_recall"] == pytest.approx(both / of_person if of_person else np.nan, nan_ok=True)
    same = [[a == b for b in items] for a in items]
    in_group = [sum(b[1] == a[1] for b in items) for a in items]
    in_person = [sum(b[0] == a[0] for b in items) for a in items]
    precision = np.mean([sum(line) / size for line, size in zip(same, in_group, strict=True)])
    recall = np.mean([sum(line) / size for line, size in zip(same, in_person, strict=True)])
    assert found["bcubed_precision"] == pytest.approx(precision)
    assert found["bcubed_recall"] == pytest.approx(recall)
    assert found["bcubed_F1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_pairs_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    persons, groups = rng.integers(0, 9, 200), rng.integers(0, 7, 200)
    ((_, only_groups), (only_persons, both)) = pair_confusion_matrix(persons, groups)
    found = result(cells([str(one) for one in persons], groups))
    assert found["pair_precision"].value == pytest.approx(both / (both + only_groups))
    assert found["pair_recall"].value == pytest.approx(both / (both + only_persons))


def test_intervals_are_over_persons() -> None:
    """One person whose items are torn apart among many who are whole: the interval reaches from it to 1."""
    names = ["torn"] * 10 + [f"whole {number}" for number in range(20) for _ in range(2)]
    groups = np.array([*range(10), *(100 + number for number in range(20) for _ in range(2))])
    recall = result(cells(names, groups))["pair_recall"]
    assert recall.value == pytest.approx(20 / 65)
    assert recall.high == pytest.approx(1)  # In 37 % of the replicates that person is not drawn.
    assert recall.low is not None
    assert recall.low < 0.2
