"""One-to-many evaluation, streamed, beside brute force on the whole matrix of similarities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnbatch.index import one_to_many
from cnnbatch.index.one_to_many import Enrolled, Probes, searched
from cnnbatch.metrics import identification
from cnnbatch.metrics.identification import Searches

WIDTH = 4


def unit(vectors: NDArray[Any]) -> NDArray[np.float16]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float16)


def by_brute_force(probes: Probes, gallery: Enrolled) -> dict[str, NDArray[Any]]:
    """Return what `searched` gives, from the whole matrix in float64."""
    stored = gallery.vectors[gallery.rows].astype(np.float32).astype(np.float64)
    similarity = probes.vectors.astype(np.float64) @ stored.T
    similarity = similarity.astype(np.float32).astype(np.float64)
    similarity[probes.own[:, None] == gallery.rows[None]] = -np.inf
    is_mate = (probes.people[:, None] == gallery.people[None]) & np.isfinite(similarity)
    mate = np.where(is_mate, similarity, -np.inf).max(1)
    others = np.where(is_mate, -np.inf, similarity)
    rank = np.where(np.isfinite(mate), 1 + (others >= mate[:, None]).sum(1), 0)
    return {"rank": rank, "mate": mate, "other": others.max(1), "mated": np.isfinite(mate)}


def streamed(probes: Probes, gallery: Enrolled) -> Searches:
    return identification.merge(searched(probes, gallery, probes.people.astype(np.uint64)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_streaming_in_any_blocks_gives_what_brute_force_gives(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    count, people = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 8))
    spread = data.draw(st.sampled_from([1, 2, 1000]))  # Few values: many equal similarities.
    vectors = unit(rng.integers(-spread, spread + 1, (count, WIDTH)) + [0.5, 0.25, 0.125, 1])
    rows = np.sort(rng.permutation(count)[: data.draw(st.integers(1, count))])
    gallery = Enrolled(vectors, rows, rng.integers(0, people, len(rows)))
    own = np.where(rng.random(12) < 0.5, rng.integers(0, count, 12), -1)
    strangers = unit(rng.integers(-spread, spread + 1, (12, WIDTH)) + [0.5, 0.25, 0.125, 1])
    sought = np.where((own >= 0)[:, None], vectors[own], strangers)
    probes = Probes(np.asarray(sought, np.float32), rng.integers(-1, people + 2, 12), own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_to_many, "PROBES", data.draw(st.integers(1, 13)))
        patch.setattr(one_to_many, "ROWS", data.draw(st.integers(1, 41)))
        found = streamed(probes, gallery)
    expected = by_brute_force(probes, gallery)
    assert found.mated.tolist() == expected["mated"].tolist()
    assert found.rank.tolist() == expected["rank"].tolist()
    for name in ("mate", "other"):
        known = np.isfinite(expected[name])
        assert np.isnan(getattr(found, name)).tolist() == (~known).tolist()
        assert getattr(found, name)[known] == pytest.approx(expected[name][known], abs=1e-6)


def test_a_face_that_is_exactly_as_similar_as_the_mate_is_ahead_of_it() -> None:
    vectors = unit(np.array([[1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1]]))
    gallery = Enrolled(vectors, np.arange(3), np.array([0, 1, 2]))
    probes = Probes(np.asarray(vectors[[0, 2]], np.float32), np.array([0, 2]), np.array([-1, -1]))
    assert streamed(probes, gallery).rank.tolist() == [2, 1]


def test_who_has_no_other_face_is_not_mated() -> None:
    vectors = unit(np.array([[1, 2, 3, 4], [4, 3, 2, 1]]))
    gallery = Enrolled(vectors, np.arange(2), np.array([0, 1]))
    found = streamed(Probes(np.asarray(vectors, np.float32), np.array([0, 5]), np.array([0, -1])), gallery)
    assert found.mated.tolist() == [False, False]
    assert found.other == pytest.approx([float(vectors[0].astype(np.float32) @ vectors[1]), 1], abs=1e-3)
