"""Upper bounds of cosines: never too small, and worth their while."""

from __future__ import annotations

import numpy as np
import pytest

from cnnbatch.index.bounds import ROUNDING, Bounds, best_bounds, pairs_above
from cnnbatch.index.duplicates import similar_pairs
from tests.embedded import people


@pytest.mark.parametrize("kept", [1, 5, 16])
def test_a_bound_is_at_least_the_cosine(kept: int) -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0][:, :kept].astype(np.float32)
    vectors = people(300).astype(np.float16).astype(np.float32)
    short = Bounds(basis).of(vectors)
    assert short.shape == (300, kept + 1)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    assert (short @ short.T >= cosines - ROUNDING).all()
    if kept == 16:
        assert np.allclose(short @ short.T, cosines, atol=1e-3)  # All dimensions are inside.


@pytest.mark.parametrize("centre", [0.0, 3.0])
def test_no_pair_is_missed_by_bounds(centre: float) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((3000, 64)) + centre  # away from zero all are similar, as of some networks
    vectors[1::50] = vectors[::50] + rng.normal(0, 0.1, (60, 64))
    half = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    least, rows = (0.95, 0.985)[centre > 0], np.arange(3000)
    assert best_bounds(half, rows, least) is not None
    cosines = half.astype(np.float64) @ half.T.astype(np.float64)
    true = {(a, b) for a, b in np.argwhere(cosines >= least).tolist() if a < b}
    found = [pair for one in similar_pairs(half, rows, least) for pair in zip(*map(list, one), strict=True)]
    assert len(true) >= 60
    assert {*found} == true
    assert len(found) == len(true)


def test_where_everything_is_similar_vectors_are_compared_whole() -> None:
    vectors = np.tile(people(1), (100, 1)).astype(np.float16)
    assert best_bounds(vectors, np.arange(100), 0.9) is None
    assert best_bounds(vectors[:1], np.arange(1), 0.9) is not None


def test_pairs_above_are_those_of_the_product() -> None:
    one, other = people(1100, seed=1), people(70, seed=2)
    found = [pair for some in pairs_above(one, other, 0.3) for pair in zip(*map(list, some), strict=True)]
    assert found == [tuple(pair) for pair in np.argwhere(one @ other.T >= 0.3).tolist()]
