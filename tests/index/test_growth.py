"""Error rates beyond the gallery: fitted to a part they predict what is larger, where the law is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cnnbatch.index.by_size import Searched, curve
from cnnbatch.index.growth import FEWEST, beyond, law_of, strangers_needed
from cnnbatch.metrics.intervals import key_hashes

STRANGERS, PEOPLE, EACH = 400, 400, 2
SETS = 20
"""Sets of searches that are drawn where intervals are looked at."""
A = 0.5
"""How much strangers differ: the shape of the gamma distribution of their rates."""


def drawn(seed: int, a: float = A, b: float | None = None, people: int = PEOPLE) -> Searched:
    """Return searches of which a stranger finds nobody among n people with (1 + n exp(-T) / a) ** -a.

    A stranger's rate is gamma distributed, and a person of the gallery is so much like him that the
    exponential of minus the similarity is exponentially distributed with that rate. With ``b`` the people of
    the gallery differ alike. Each stranger is a probe `EACH` times, nearly the same.
    """
    random = np.random.default_rng(seed)
    rates = (
        random.gamma(a, 1 / a, (STRANGERS // EACH, 1)) if np.isfinite(a) else np.ones((STRANGERS // EACH, 1))
    )
    of_people = 1.0 if b is None else random.gamma(b, 1 / b, people)
    rates = np.repeat(rates, EACH, axis=0) * of_people
    similarity = -np.log(random.exponential(size=(STRANGERS, people)) / np.maximum(rates, 1e-12))
    names = np.tile(key_hashes(f"p{one}" for one in range(people)), (STRANGERS, 1))
    order = np.argsort(-similarity, axis=1)
    return Searched(
        np.take_along_axis(similarity, order, 1),
        np.take_along_axis(names, order, 1),
        np.full(STRANGERS, np.nan),
        np.repeat(key_hashes(f"s{one}" for one in range(STRANGERS // EACH)), EACH),
        np.ones(STRANGERS, np.bool_),
        names[0],
        3 * people,
    )


def with_mates(searches: Searched, seed: int) -> Searched:
    """Return searches with mates whose similarity is normal, in the same gallery of strangers to them."""
    random = np.random.default_rng(1000 + seed)
    own = key_hashes(f"p{one}" for one in range(STRANGERS))
    others = np.where(searches.of == own[:, None], -np.inf, searches.others)
    order = np.argsort(-others, axis=1)
    mated = Searched(
        np.take_along_axis(others, order, 1),
        np.take_along_axis(searches.of, order, 1),
        random.normal(9, 2, STRANGERS),
        own,
        np.zeros(STRANGERS, np.bool_),
        searches.gallery,
        searches.rows,
    )
    return Searched(
        np.concatenate([searches.others, mated.others]),
        np.concatenate([searches.of, mated.of]),
        np.concatenate([searches.mate, mated.mate]),
        np.concatenate([searches.person, mated.person]),
        np.concatenate([searches.absent, mated.absent]),
        searches.gallery,
        searches.rows,
    )


def fpir(threshold: float, people: float, a: float = A) -> float:
    """Return the share of strangers that the law lets find somebody."""
    mean = people * np.exp(-threshold)
    return float(1 - (1 + mean / a) ** -a) if np.isfinite(a) else float(1 - np.exp(-mean))


def needed(rate: float, people: float, a: float = A) -> float:
    """Return the threshold of a rate by the law."""
    mean = a * ((1 - rate) ** (-1 / a) - 1) if np.isfinite(a) else -np.log1p(-rate)
    return float(-np.log(mean / people))


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(A, None), (np.inf, None), (A, 1.0)])
def test_the_interval_of_an_extrapolation_has_what_the_law_gives(a: float, b: float | None) -> None:
    """Of the sets of searches about 95 % have it, at 2, 4 and 8 times as many people; 80 % at least."""
    within: dict[tuple[str, int], list[bool]] = {}
    for seed in range(SETS):
        searches = drawn(seed, a, b)
        whole = [one for one in curve(searches, [0.1], 2) if one.people == PEOPLE]
        for one in beyond(searches, whole):
            assert one.is_extrapolated
            assert one.found is not None
            limit, now = one.threshold, whole[0].threshold.similarity
            assert limit.low is not None
            assert limit.high is not None
            assert now is not None
            true = needed(0.1, one.people, a)
            within.setdefault(("threshold", one.people), []).append(limit.low <= true <= limit.high)
            low, high = one.found.low, one.found.high
            assert low is not None
            assert high is not None
            is_in = low <= fpir(now, one.people, a) <= high
            within.setdefault(("found", one.people), []).append(is_in)
    for (name, people), hits in within.items():
        if people <= 8 * PEOPLE and len(hits) == SETS:
            assert np.mean(hits) >= 0.8, (name, people, np.mean(hits))
    assert {people for _, people in within} >= {2 * PEOPLE, 4 * PEOPLE}


def test_what_a_part_of_the_gallery_says_of_the_whole_is_what_the_whole_shows() -> None:
    """Fitted to an eighth of the people; the whole is held out."""
    hits = []
    for seed in range(SETS):
        searches = drawn(seed)
        chosen = searches.of < np.uint64(2**64 // 8)
        part = Searched(
            -np.sort(-np.where(chosen, searches.others, -np.inf), axis=1),
            searches.of,
            searches.mate,
            searches.person,
            searches.absent,
            searches.gallery[searches.gallery < np.uint64(2**64 // 8)],
            searches.rows // 8,
        )
        law = law_of(part)
        threshold = needed(0.1, PEOPLE)
        expected = -np.expm1(-law.at(np.array([threshold]), PEOPLE))[0]
        hits.append(expected - np.mean(searches.others[:, 0] >= threshold))
    assert abs(np.mean(hits)) < 0.02  # Of 0.1, about; no bias.
    assert np.mean(np.abs(hits)) < 0.05


def test_independent_strangers_give_the_formula_of_independence() -> None:
    searches = drawn(3, np.inf)
    law = law_of(searches)
    point = int(np.flatnonzero(-np.expm1(-law.intensity(PEOPLE)) >= 0.2)[0])
    far = np.mean(searches.others >= law.points[point])
    expected = 1 - (1 - far) ** (4 * PEOPLE)
    assert -np.expm1(-law.intensity(4 * PEOPLE)[point]) == pytest.approx(expected, rel=0.15)


def test_the_law_goes_through_what_was_measured_and_never_falls() -> None:
    searches = drawn(1)
    law = law_of(searches)
    found = -np.expm1(-law.intensity(PEOPLE))
    measured = [np.mean(searches.others[:, 0] >= point) for point in law.points]
    np.testing.assert_allclose(found[:-1], measured[:-1], rtol=1e-6)  # At the last one all find somebody.
    for size in (PEOPLE, 3 * PEOPLE, 100 * PEOPLE):
        assert (np.diff(law.intensity(size)) >= 0).all()
    assert (law.intensity(2 * PEOPLE) >= law.intensity(PEOPLE)).all()
    assert law.at(np.array([law.points[0] + 1]), PEOPLE).tolist() == [0]


def test_it_ends_where_too_few_strangers_reach_the_threshold() -> None:
    searches = drawn(2)
    whole = [one for one in curve(searches, [0.1, 0.01, 0.001], 2) if one.people == PEOPLE]
    found = beyond(searches, whole)
    for one in found:
        assert one.threshold.similarity is not None
        reaching = searches.person[searches.others[:, 0] >= one.threshold.similarity]
        assert len(np.unique(reaching)) >= FEWEST
    assert {one.threshold.rate for one in found} == {0.1}  # 400 * 0.01 are fewer than ten.
    assert strangers_needed(0.01, 4) == 4_000
    assert strangers_needed(0.1, 0.5) == 100


@pytest.mark.slow
def test_misses_grow_with_the_gallery_and_have_what_mates_show() -> None:
    """FNIR by the law: a mate below the threshold, or somebody among n people who is as similar."""
    hits = []
    for seed in range(SETS):
        searches = with_mates(drawn(seed), seed)
        whole = [one for one in curve(searches, [0.1], 2) if one.people == PEOPLE]
        shares = [whole[0].missed.share or 0.0]
        mates = np.random.default_rng(7).normal(9, 2, 200_000)
        for one in beyond(searches, whole):
            assert one.missed.share is not None
            assert one.missed.low is not None
            assert one.missed.high is not None
            assert one.missed.low <= one.missed.share <= one.missed.high
            shares.append(one.missed.share)
            mean = one.people * np.exp(-mates)
            kept = (mates >= needed(0.1, one.people)) * (1 + mean / A) ** -A
            hits.append(one.missed.low <= 1 - kept.mean() <= one.missed.high)
        assert shares == sorted(shares)
    assert np.mean(hits) >= 0.8


def test_without_strangers_who_find_anybody_nothing_is_said() -> None:
    searches = drawn(0)
    nobody = replace(searches, others=np.full_like(searches.others, -np.inf))
    assert beyond(nobody, curve(nobody, [0.1], 2)) == []
