"""Identification against sorting each candidate list, every threshold in turn, and repeated probes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, identification
from cnnbatch.metrics.intervals import percentiles, poisson_weights
from cnnbatch.metrics.verification import POINTS, written

ENROLLED = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Fay")
STRANGERS = ("Xi", "Yan", "Zoe")


@dataclass(frozen=True)
class Given:
    """Searches as they come in: each probe's person, whether it failed, and the gallery's scores."""

    people: list[str]
    failed: list[bool]
    scores: NDArray[np.float64]
    gallery: list[str]

    def piece(self, rows: Sequence[int]) -> identification.Searches:
        chosen = list(rows)
        return identification.partial(
            [self.people[row] for row in chosen],
            np.array(self.failed)[chosen],
            self.scores[chosen],
            self.gallery,
        )

    def whole(self) -> identification.Searches:
        return self.piece(range(len(self.people)))


@st.composite
def searches(draw: st.DrawFn, most: int = 25) -> Given:
    """Few distinct scores, so that many are equal; some people enrolled twice, others not at all."""
    count = draw(st.integers(1, most))
    gallery = draw(st.lists(st.sampled_from(ENROLLED), min_size=1, max_size=8))
    people = draw(st.lists(st.sampled_from(ENROLLED + STRANGERS), min_size=count, max_size=count))
    failed = draw(st.lists(st.sampled_from([False, False, True]), min_size=count, max_size=count))
    cells = st.sampled_from([np.nan, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    width = len(gallery)
    flat = draw(st.lists(cells, min_size=count * width, max_size=count * width))
    return Given(people, failed, np.array(flat).reshape(count, width), gallery)


def candidates(given: Given, probe: int) -> list[tuple[float, bool]]:
    """A probe's candidates (score, is it the mate), best first; of equal scores the mate's last."""
    if given.failed[probe]:
        return []
    row = zip(given.scores[probe], given.gallery, strict=True)
    found = [(float(score), name == given.people[probe]) for score, name in row if not np.isnan(score)]
    return sorted(found, key=lambda candidate: (-candidate[0], candidate[1]))


def mates_rank(given: Given, probe: int) -> float:
    ranked = [is_mate for _, is_mate in candidates(given, probe)]
    return ranked.index(True) + 1 if True in ranked else np.inf


def rates_at(given: Given, threshold: float, rank: int) -> tuple[float, float]:
    """FPIR and FNIR, search by search."""
    false, missed = [], []
    for probe, person in enumerate(given.people):
        best = candidates(given, probe)
        if person in given.gallery:
            score = next((score for score, is_mate in best if is_mate), -np.inf)
            missed.append(mates_rank(given, probe) > rank or score < threshold)
        else:
            false.append(any(score >= threshold for score, _ in best))
    return sum(false) / len(false), sum(missed) / len(missed)


def both_kinds(given: Given) -> bool:
    return len({person in given.gallery for person in given.people}) == 2


def value(evaluated: Evaluated, name: str) -> float | None:
    return evaluated.metrics[name].value


@given(searches())
@settings(max_examples=60)
def test_ranks_are_those_of_sorted_candidates(given: Given) -> None:
    evaluated = identification.result(given.whole(), replicates=0)
    mated = [probe for probe, person in enumerate(given.people) if person in given.gallery]
    ranks = np.array([mates_rank(given, probe) for probe in mated])
    cmc = evaluated.tables["cmc"].to_pydict()
    assert cmc["rank"] == (list(range(1, len(given.gallery) + 1)) if mated else [])
    assert cmc["rate"] == [np.mean(ranks <= rank) for rank in cmc["rank"]]
    for rank in identification.RANKS:
        known = mated and rank <= len(given.gallery)
        assert value(evaluated, f"rank{rank}") == (np.mean(ranks <= rank) if known else None)
    assert value(evaluated, "failed_probes") == sum(given.failed)


@given(searches().filter(both_kinds), st.integers(1, 3))
@settings(max_examples=60)
def test_rates_are_those_of_every_threshold_in_turn(given: Given, rank: int) -> None:
    fpirs = (0.5, 0.3)
    evaluated = identification.result(given.whole(), fpirs, rank, replicates=0)
    points = [rates_at(given, threshold, rank) for threshold in (np.inf, 6, 5, 4, 3, 2, 1)]
    strangers = sum(person not in given.gallery for person in given.people)
    for fpir in fpirs:
        known = strangers * fpir >= 1 and rank <= len(given.gallery)
        least = min(missed for false, missed in points if false <= fpir)
        assert value(evaluated, f"FNIR@FPIR={written(fpir)}") == (pytest.approx(least) if known else None)
    for row in evaluated.tables["det"].to_pylist():
        assert (row["fpir"], row["fnir"]) == pytest.approx(rates_at(given, row["threshold"], rank))


@given(searches(most=10), st.data())
@settings(max_examples=25)
def test_any_split_in_any_order_gives_what_one_piece_gives(given: Given, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(given.people))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    pieces = [given.piece(rows[start:end]) for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    pieces = pickle.loads(pickle.dumps(pieces))
    nested = identification.merge([pieces[0], identification.merge(pieces[1:])]) if pieces[1:] else pieces[0]
    for merged in (identification.merge(pieces), nested):
        one = identification.result(given.whole(), (0.5,), replicates=5)
        assert identification.result(merged, (0.5,), replicates=5) == one


@given(searches(), st.data())
@settings(max_examples=40)
def test_ranked_candidates_give_what_all_scores_give(given: Given, data: st.DataObject) -> None:
    width = len(given.gallery)
    order = np.argsort(-given.scores, axis=1)[:, : data.draw(st.integers(1, width))]
    best = np.take_along_axis(given.scores, order, axis=1)
    entries = np.where(np.isnan(best), -1, order)
    listed = identification.partial(given.people, given.failed, best, given.gallery, entries)
    whole = given.whole()
    np.testing.assert_array_equal(listed.other[~listed.mated], whole.other[~whole.mated])
    if order.shape[1] == width:
        np.testing.assert_array_equal(listed.rank, whole.rank)
        np.testing.assert_array_equal(listed.mate, whole.mate)
    else:
        inside = listed.rank > 0
        assert (listed.rank[inside] <= whole.rank[inside]).all()  # Equal scores may be cut off.
        assert value(identification.result(listed, replicates=0), "rank10") is None


def test_by_hand() -> None:
    given = Given(
        ["Ada", "Ben", "Ben", "Xi", "Xi"],
        [False, False, True, False, True],
        np.array([[0.9, 0.3], [0.6, 0.5], [0.1, 0.99], [0.4, 0.7], [0.9, 0.9]]),
        ["Ada", "Ben"],
    )
    evaluated = identification.result(given.whole(), (0.5,))
    assert value(evaluated, "rank1") == pytest.approx(1 / 3)
    assert evaluated.tables["cmc"].to_pydict() == {"rank": [1, 2], "rate": [pytest.approx(1 / 3), 2 / 3]}
    assert evaluated.metrics["rank5"].reason == "only the best 2 candidates of a search are known"
    assert evaluated.tables["det"]["threshold"].to_pylist() == [np.inf, 0.9, 0.7]
    assert evaluated.tables["det"]["fpir"].to_pylist() == [0.0, 0.0, 0.5]
    assert value(evaluated, "FNIR@FPIR=5e-1") == pytest.approx(2 / 3)
    assert value(evaluated, "failed_probes") == 2
    assert (evaluated.metrics["rank1"].count, evaluated.metrics["failed_probes"].count) == (3, 5)


def test_one_score_for_everyone_finds_nobody() -> None:
    given = Given(["Ada", "Ben"], [False, False], np.ones((2, 3)), ["Ada", "Ben", "Cleo"])
    evaluated = identification.result(given.whole())
    assert evaluated.tables["cmc"]["rate"].to_pylist() == [0.0, 0.0, 1.0]


def test_an_interval_is_the_percentiles_of_repeated_probes() -> None:
    random = np.random.default_rng(0)
    people = random.choice(ENROLLED + STRANGERS, 80).tolist()
    given = Given(people, [False] * 80, random.normal(size=(80, 6)), list(ENROLLED))
    given.scores[np.array(people)[:, None] == np.array(ENROLLED)] += 1
    evaluated = identification.result(given.whole(), (0.5,))
    weights = dict(zip(ENROLLED + STRANGERS, poisson_weights(ENROLLED + STRANGERS), strict=True))
    replicates: dict[str, list[float]] = {"rank1": [], "FNIR@FPIR=5e-1": []}
    for replicate in range(200):
        rows = np.repeat(np.arange(80), [weights[person][replicate] for person in people])
        again = identification.result(given.piece(rows.tolist()), (0.5,), replicates=0)
        for name, known in replicates.items():
            known.append(np.nan if (found := value(again, name)) is None else found)
    for name, known in replicates.items():
        expected = percentiles(np.array(known))
        assert (evaluated.metrics[name].low, evaluated.metrics[name].high) == pytest.approx(expected)
        assert expected[0] != expected[1]


def test_what_cannot_be_known_says_why() -> None:
    strangers = Given(["Xi"] * 20, [False] * 20, np.ones((20, 1)), ["Ada"]).whole()
    evaluated = identification.result(strangers)
    assert evaluated.metrics["rank1"].reason == "no probe's person is in the gallery"
    assert evaluated.metrics["FNIR@FPIR=1e-1"].reason == "no probe's person is in the gallery"
    assert evaluated.metrics["FNIR@FPIR=1e-2"].reason == (
        "20 non-mated searches can't resolve FPIR 1e-2: 100 are needed"
    )
    assert evaluated.tables["cmc"].num_rows == evaluated.tables["det"].num_rows == 0


def test_a_rank_is_known_as_deep_as_the_shortest_candidate_lists() -> None:
    gallery = [str(person) for person in range(12)]
    deep, short = (
        identification.partial(["0"], [False], [range(depth)], gallery, [range(depth)]) for depth in (10, 5)
    )
    assert value(identification.result(deep), "rank10") == 1.0
    both = identification.result(identification.merge([deep, short]))
    assert value(both, "rank5") == 0.5
    assert both.metrics["rank10"].reason == "only the best 5 candidates of a search are known"


def test_long_tables_are_bounded() -> None:
    random = np.random.default_rng(0)
    gallery = [str(person) for person in range(200)]
    people = [str(person % 300) for person in range(3000)]
    given = Given(people, [False] * 3000, random.normal(size=(3000, 200)), gallery)
    evaluated = identification.result(given.whole(), rank=200, replicates=0)
    assert evaluated.tables["cmc"].num_rows == identification.MOST_RANKS
    assert POINTS // 2 < evaluated.tables["det"].num_rows <= POINTS
    # Scores tell nobody from anybody: each rank is as likely as any other.
    np.testing.assert_allclose(evaluated.tables["cmc"]["rate"], np.arange(1, 101) / 200, atol=0.03)


@pytest.mark.parametrize(
    ("scores", "candidates", "complaint"),
    [
        (np.ones((2, 3)), None, "for 1 probes"),
        (np.ones((1, 2)), None, r"candidates \(1, 3\)"),
        (np.full((1, 3), np.inf), None, "infinite"),
        (np.ones((1, 2)), [[0, 3]], "among the 3 entries"),
        (np.ones((1, 2)), [[0, -1]], "among the 3 entries"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(
    scores: NDArray[np.float64], candidates: list[list[int]] | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        identification.partial(["Ada"], [False], scores, ["Ada", "Ben", "Cleo"], candidates)


def test_a_rate_or_rank_out_of_range_is_refused() -> None:
    whole = Given(["Ada"], [False], np.ones((1, 1)), ["Ada"]).whole()
    with pytest.raises(ValueError, match="between 0 and 1"):
        identification.result(whole, [1.0])
    with pytest.raises(ValueError, match="rank from 1"):
        identification.result(whole, rank=0)
