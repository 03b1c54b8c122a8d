"""Error rates by the gallery's size, beside brute force: each search, and parts that are drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cnnbatch.index import by_size
from cnnbatch.index.by_size import (
    NOBODY,
    Gallery,
    Probes,
    Searched,
    curve,
    detection_errors,
    found,
    missed,
    searched,
    thresholds,
)
from cnnbatch.metrics.intervals import key_hashes

ROWS, PEOPLE, WIDTH = 900, 180, 8


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length 1, float32."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """Return a gallery of which a tenth has no name, and every seventh row is gone."""
    random = np.random.default_rng(0)
    who = random.integers(0, PEOPLE, ROWS)
    people = key_hashes(f"p{one}" for one in who)
    centres = random.normal(size=(PEOPLE, WIDTH))
    vectors = unit(centres[who] + 0.3 * random.normal(size=(ROWS, WIDTH)))
    people[random.random(ROWS) < 0.1] = NOBODY
    people[:5] = key_hashes(f"single {one}" for one in range(5))
    return Gallery(vectors, np.flatnonzero(np.arange(ROWS) % 7), people)


@pytest.fixture(scope="module")
def probes(gallery: Gallery) -> Probes:
    """Return probes: 100 rows of the gallery with names, and 60 pictures of 30 people who are absent."""
    random = np.random.default_rng(1)
    known = gallery.live[gallery.people[gallery.live] != NOBODY][:100]
    return Probes(
        np.concatenate([gallery.vectors[known], unit(random.normal(size=(60, WIDTH)))]).astype(np.float32),
        np.concatenate([gallery.people[known], key_hashes(f"absent {one // 2}" for one in range(60))]),
        np.concatenate([known, np.full(60, -1)]),
        np.arange(160) >= 100,
    )


@pytest.fixture(scope="module")
def searches(probes: Probes, gallery: Gallery) -> Searched:
    return searched(probes, gallery)


def by_brute_force(
    probes: Probes, gallery: Gallery, place: int, people: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Return the similarity of a probe's best mate, NaN for none, and of each other person, falling.

    With ``people`` only these others are there.
    """
    who = gallery.people_of_rows()
    similarity = gallery.vectors[gallery.live].astype(np.float32) @ probes.vectors[place]
    rows, of = gallery.live, who[gallery.live]
    is_mate = (of == probes.people[place]) & ~probes.absent[place]
    mates = similarity[is_mate & (rows != probes.rows[place])]
    others = ~is_mate & (rows != probes.rows[place])
    if people is not None:
        others &= np.isin(of, people)
    best = [similarity[others & (of == one)].max() for one in np.unique(of[others])]
    return (float(mates.max()) if len(mates) else np.nan), -np.sort(-np.array(best))


def test_each_search_is_that_of_brute_force(probes: Probes, gallery: Gallery, searches: Searched) -> None:
    expected = [by_brute_force(probes, gallery, place) for place in range(160)]
    kept = [place for place in range(160) if place >= 100 or not np.isnan(expected[place][0])]
    assert 0 < len(kept) < 160  # Some have no mate, and are left out.
    assert searches.person.tolist() == probes.people[kept].tolist()
    np.testing.assert_allclose(searches.mate, [expected[place][0] for place in kept], rtol=1e-5)
    for row, place in zip(searches.others, kept, strict=True):
        there = row[np.isfinite(row)]
        # Of 257 rows with several faces of a person fewer than 257 are people, the most similar ones.
        assert 20 < len(there) <= by_size.DEPTH
        np.testing.assert_allclose(there, expected[place][1][: len(there)], rtol=1e-5)
    assert searches.rows == len(gallery.live)
    assert searches.people == len(np.unique(gallery.people_of_rows()[gallery.live]))


def test_a_part_of_the_gallery_has_the_mean_of_parts_that_are_drawn(
    probes: Probes, gallery: Gallery, searches: Searched
) -> None:
    """Parts of a quarter of the people are drawn 300 times, and searched by brute force."""
    random, threshold = np.random.default_rng(5), 0.93
    known = [by_brute_force(probes, gallery, place) for place in range(160)]
    strangers = [place for place in range(160) if probes.absent[place]]
    shares, misses = [], []
    who, live = gallery.people_of_rows(), gallery.live
    everyone = np.unique(who[live])
    best = np.stack(
        [(gallery.vectors[live[who[live] == one]] @ probes.vectors.T).max(axis=0) for one in everyone]
    )  # [M, P]
    mated = [place for place in range(100) if not np.isnan(known[place][0])]
    own = everyone[:, None] == probes.people[None]
    for _ in range(300):
        chosen = random.random(len(everyone)) < 0.25
        others = np.where(chosen[:, None] & ~own, best, -np.inf).max(axis=0)
        shares.append(np.mean(others[strangers] >= threshold))
        mates = np.array([known[place][0] for place in mated])
        misses.append(1 - np.mean((mates >= threshold) & (mates > others[mated])))
    one = found(searches.strangers, 0.25, threshold, 2)
    assert one is not None
    assert one.share == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / 300**0.5)
    other = missed(searches.mated, 0.25, threshold, 2)
    assert other.share == pytest.approx(np.mean(misses), abs=4 * np.std(misses) / 300**0.5)


def test_thresholds_grow_with_the_gallery_and_keep_the_rate(searches: Searched) -> None:
    at_sizes = curve(searches, [0.1], replicates=20)
    parts = [*searches.parts()]
    assert [one.rows for one in at_sizes] == [round(searches.rows * part) for part in parts]
    assert [one.people for one in at_sizes] == [round(searches.people * part) for part in parts]
    assert parts[:3] == [1, 0.5, 0.25]
    assert searches.rows * parts[-1] >= by_size.SMALLEST > searches.rows * parts[-1] / 2
    limits = [one.threshold.similarity for one in at_sizes if one.threshold.similarity is not None]
    assert len(limits) == len(parts)
    assert limits == sorted(limits, reverse=True)
    for part, limit, one in zip(parts, limits, at_sizes, strict=True):
        at_limit = found(searches.strangers, part, limit, 2)
        assert at_limit is not None
        assert 0.05 < at_limit.share <= 0.1 + 1e-12
        assert one.missed == missed(searches.mated, part, limit, 20)
        assert one.found is not None
        assert one.found.low is not None
        assert one.found.high is not None
        assert one.found.low <= one.found.share <= one.found.high
        assert one.found.share <= at_limit.share  # By the threshold of the whole, which is higher.


def test_the_whole_gallery_has_the_rates_of_its_searches(searches: Searched) -> None:
    """FPIR and FNIR counted search by search."""
    mated, best = ~searches.absent, searches.others[:, 0]
    [whole, *_] = curve(searches, [0.1], replicates=20)
    assert whole.threshold.similarity is not None
    points = detection_errors(searches)
    assert len(points) > 20
    for limit, false, misses in [
        (whole.threshold.similarity, None, whole.missed.share),
        *((point.similarity, point.false, point.share) for point in points),
    ]:
        assert limit is not None
        right = (searches.mate[mated] >= limit) & (searches.mate[mated] > best[mated])
        assert misses == pytest.approx(1 - np.mean(right))
        if false is not None:
            assert false == pytest.approx(np.mean(best[searches.absent] >= limit))


def test_a_rate_beyond_the_absent_probes_is_none_with_its_reason(searches: Searched) -> None:
    [one] = thresholds(searches.strangers, 1, [1e-3], replicates=2)
    assert one.similarity is None
    assert one.reason == "60 absent probes can't resolve a rate of 1e-3: 1,000 are needed"
    [first, *_] = curve(searches, [1e-3], replicates=2)
    assert first.missed.share is None
    assert first.found is None


def test_faces_without_a_name_are_people_of_their_own(probes: Probes, gallery: Gallery) -> None:
    nameless = replace(gallery, people=np.full(ROWS, NOBODY, np.uint64))
    strangers = searched(probes, nameless)
    assert strangers.people == strangers.rows == len(gallery.live)
    assert strangers.absent.all()  # Nobody who has no name is a mate.
