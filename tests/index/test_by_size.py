"""Error rates by the gallery's size: each search beside brute force, in one pass and in any blocks."""

from __future__ import annotations

import numpy as np
import pytest

from cnnbatch.index.by_size import NOBODY, Probes, SearchesBySize, curve, levels_of
from cnnbatch.metrics.intervals import key_hashes

ROWS, PEOPLE, WIDTH = 1500, 300, 8


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1, float32."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def gallery() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, vectors and people of a gallery; a tenth has no name."""
    random = np.random.default_rng(0)
    people = random.integers(1, PEOPLE + 1, ROWS).astype(np.uint64)
    centres = random.normal(size=(PEOPLE + 1, WIDTH))
    vectors = unit(centres[people.astype(int)] + 0.3 * random.normal(size=(ROWS, WIDTH)))
    people[random.random(ROWS) < 0.1] = NOBODY
    return key_hashes(map(str, range(ROWS))), vectors, people


@pytest.fixture(scope="module")
def probes(gallery: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Probes:
    """Return probes: 100 rows of the gallery with names, and 50 people who are absent."""
    ids, vectors, people = gallery
    random = np.random.default_rng(1)
    known = np.flatnonzero(people != NOBODY)[:100]
    absent = unit(random.normal(size=(50, WIDTH)))
    return Probes(
        np.concatenate([vectors[known], absent]),
        np.concatenate([people[known], key_hashes(f"absent {one}" for one in range(50))]),
        np.concatenate([ids[known], np.zeros(50, np.uint64)]),
        np.arange(150) >= 100,
    )


def searched(probes: Probes, gallery: tuple[np.ndarray, ...], block: int) -> SearchesBySize:
    """Return the searches, the gallery given in blocks."""
    found = SearchesBySize(probes)
    for start in range(0, ROWS, block):
        found.add(*(part[start : start + block] for part in gallery))
    return found


def test_each_search_is_that_of_brute_force(probes: Probes, gallery: tuple[np.ndarray, ...]) -> None:
    ids, vectors, people = gallery
    found = searched(probes, gallery, 400)
    levels = levels_of(ids)
    sizes = found.sizes()
    assert sizes[0] == ROWS
    assert sizes == [int(np.sum(levels >= place)) for place in range(len(sizes))]
    assert sizes[-1] >= 100 > np.sum(levels >= len(sizes))
    for place in range(len(sizes)):
        at = found.at(place)
        kept = []
        for vector, person, row, absent in zip(
            probes.vectors, probes.people, probes.rows, probes.absent, strict=True
        ):
            similarity = vectors @ vector
            others = (ids != row) & ((people != person) | (people == NOBODY)) & (levels >= place)
            mates = (ids != row) & (people == person) & (person != NOBODY)
            if not absent and not mates.any():
                continue
            kept.append((similarity[mates].max() if mates.any() else np.nan, similarity[others].max()))
        np.testing.assert_allclose(np.stack([at.mate, at.other], axis=1), kept, rtol=1e-6)
        assert at.rank[at.mated].tolist() == [
            1 if mate > other else 2 for mate, other in kept if mate == mate
        ]


def test_blocks_do_not_matter(probes: Probes, gallery: tuple[np.ndarray, ...]) -> None:
    one, other = (searched(probes, gallery, block).at(1) for block in (ROWS, 7))
    np.testing.assert_allclose(one.other, other.other, rtol=1e-6)
    np.testing.assert_allclose(one.mate, other.mate, rtol=1e-6)


def test_galleries_are_halves_of_each_other() -> None:
    levels = levels_of(key_hashes(map(str, range(100_000))))
    shares = [np.mean(levels >= place) for place in range(6)]
    np.testing.assert_allclose(shares, 0.5 ** np.arange(6), rtol=0.05)


def test_thresholds_grow_with_the_gallery_and_keep_the_rate(
    probes: Probes, gallery: tuple[np.ndarray, ...]
) -> None:
    searches = searched(probes, gallery, ROWS)
    found = curve(searches, [0.1], replicates=20)
    sizes = searches.sizes()
    assert [one.rows for one in found] == sizes
    thresholds = [one.threshold.similarity for one in found if one.threshold.similarity is not None]
    assert len(thresholds) == len(sizes)
    assert thresholds == sorted(thresholds, reverse=True)
    for place, (one, threshold) in enumerate(zip(found, thresholds, strict=True)):
        at = searches.at(place)
        false, mate = at.other[~at.mated], at.mate[at.mated]
        assert np.mean(false >= threshold) <= 0.1
        right = (mate >= threshold) & (mate > at.other[at.mated])
        missed = one.missed
        assert missed.share == pytest.approx(1 - right.mean())
        assert missed.share is not None
        assert missed.low is not None
        assert missed.high is not None
        assert missed.low <= missed.share <= missed.high


def test_a_rate_beyond_the_absent_probes_is_none_with_its_reason(
    probes: Probes, gallery: tuple[np.ndarray, ...]
) -> None:
    one = curve(searched(probes, gallery, ROWS), [1e-3], replicates=2)[0]
    assert one.threshold.similarity is None
    assert one.threshold.reason == "50 absent probes can't resolve a rate of 1e-3: 1,000 are needed"
    assert one.missed.share is None
