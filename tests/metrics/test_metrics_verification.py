"""Verification against scikit-learn, every threshold in turn, closed forms and LFW's protocol by hand."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from cnnbatch.metrics import Evaluated, verification
from cnnbatch.metrics.intervals import percentiles, poisson_weights

PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eve")
NORMAL = NormalDist()


@dataclass(frozen=True)
class Given:
    """Pairs as they come in; a score of None failed."""

    scores: list[float | None]
    first: list[str]
    second: list[str]
    folds: list[int] | None = None

    @property
    def same(self) -> NDArray[np.bool_]:
        return np.array([first == second for first, second in zip(self.first, self.second, strict=True)])

    @property
    def known(self) -> NDArray[np.float64]:
        """The scores with failures below all others."""
        return np.array([-99.0 if score is None else score for score in self.scores])

    def piece(self, rows: Sequence[int]) -> verification.FacePairs:
        return verification.partial(
            [self.scores[row] for row in rows],
            self.same[list(rows)],
            [self.first[row] for row in rows],
            [self.second[row] for row in rows],
            None if self.folds is None else [self.folds[row] for row in rows],
        )

    def whole(self) -> verification.FacePairs:
        return self.piece(range(len(self.scores)))


@st.composite
def pairs(draw: st.DrawFn, folds: bool = False, most: int = 40) -> Given:
    """Few distinct scores, so that many are equal; both kinds of pair."""
    count = draw(st.integers(2, most))
    scores = draw(st.lists(st.none() | st.integers(-3, 4).map(float), min_size=count, max_size=count))
    people = st.lists(st.sampled_from(PEOPLE), min_size=count - 2, max_size=count - 2)
    numbers = st.lists(st.integers(0, 3), min_size=count - 2, max_size=count - 2)
    return Given(
        scores,
        ["Ada", "Ada", *draw(people)],
        ["Ada", "Ben", *draw(people)],
        [0, 1, *draw(numbers)] if folds else None,
    )


def number(evaluated: Evaluated, name: str) -> float:
    value = evaluated.metrics[name].value
    assert value is not None
    return value


def gaussians(distance: float, count: int) -> tuple[list[float], NDArray[np.bool_], list[str], list[str]]:
    """Quantiles of two Gaussians of variance 1, each pair of its own people."""
    quantiles = [NORMAL.inv_cdf((place + 0.5) / count) for place in range(count)]
    scores = [*(quantile + distance for quantile in quantiles), *quantiles]
    same = np.arange(2 * count) < count
    first = [str(place) for place in range(2 * count)]
    return (
        scores,
        same,
        first,
        [name if one else f"not {name}" for name, one in zip(first, same, strict=True)],
    )


@given(pairs())
@settings(max_examples=60)
def test_curve_and_area_are_scikit_learns(given: Given) -> None:
    evaluated = verification.result(given.whole(), replicates=0)
    far, tar, thresholds = roc_curve(given.same, given.known, drop_intermediate=False)
    accepting = thresholds > -99  # Failed pairs are below every threshold of ours.
    roc = evaluated.tables["roc"]
    np.testing.assert_array_equal(roc["threshold"].to_numpy(), thresholds[accepting])
    np.testing.assert_allclose(roc["far"].to_numpy(), far[accepting], rtol=1e-15)
    np.testing.assert_allclose(roc["tar"].to_numpy(), tar[accepting], rtol=1e-15)
    assert number(evaluated, "AUC") == pytest.approx(roc_auc_score(given.same, given.known), rel=1e-12)


def accepted_by_hand(given: Given) -> list[tuple[float, float]]:
    """FAR and TAR at every threshold from the strictest, pair by pair."""
    points = []
    for threshold in [np.inf, *sorted({score for score in given.scores if score is not None}, reverse=True)]:
        yes = [score is not None and score >= threshold for score in given.scores]
        wrong = [accept for accept, same in zip(yes, given.same, strict=True) if not same]
        right = [accept for accept, same in zip(yes, given.same, strict=True) if same]
        points.append((sum(wrong) / len(wrong), sum(right) / len(right)))
    return points


@given(pairs())
@settings(max_examples=60)
def test_rates_are_those_of_every_threshold_in_turn(given: Given) -> None:
    fars = (0.5, 0.3, 0.05)
    evaluated = verification.result(given.whole(), fars, replicates=0)
    points = accepted_by_hand(given)
    impostors = int(np.count_nonzero(~given.same))
    for far in fars:
        value = evaluated.metrics[f"TAR@FAR={verification.written(far)}"]
        if impostors * far < 1:
            assert value.value is None
        else:
            assert value.value == max(tar for wrong, tar in points if wrong <= far)
    crossings = []
    for (far, tar), (next_far, next_tar) in zip(points, [*points[1:], (1.0, 1.0)], strict=True):
        before, after = far + tar - 1, next_far + next_tar - 1
        if before < 0 <= after:
            crossings.append(far - before * (next_far - far) / (after - before))
    assert number(evaluated, "EER") == pytest.approx(crossings[0], abs=1e-12)


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_two_gaussians(distance: float) -> None:
    evaluated = verification.result(verification.partial(*gaussians(distance, 20_000)), replicates=2)
    assert number(evaluated, "EER") == pytest.approx(NORMAL.cdf(-distance / 2), abs=1e-4)
    assert number(evaluated, "AUC") == pytest.approx(NORMAL.cdf(distance / sqrt(2)), abs=1e-4)
    for far in (0.1, 0.01, 0.001):
        expected = NORMAL.cdf(distance + NORMAL.inv_cdf(far))
        assert number(evaluated, f"TAR@FAR={verification.written(far)}") == pytest.approx(expected, abs=2e-3)


def test_a_failed_pair_is_never_accepted_and_stays_in_the_count() -> None:
    given = Given([0.9, None, 0.2, None], ["a", "b", "c", "d"], ["a", "b", "d", "e"])
    evaluated = verification.result(given.whole(), (0.5,))
    assert evaluated.tables["roc"].to_pydict() == {
        "threshold": [np.inf, 0.9, 0.2],
        "far": [0.0, 0.0, 0.5],
        "tar": [0.0, 0.5, 0.5],
    }
    assert number(evaluated, "TAR@FAR=5e-1") == 0.5
    assert number(evaluated, "failed_pairs") == 2
    assert evaluated.metrics["AUC"].count == 4


def test_ten_folds_by_hand() -> None:
    """Each fold has a genuine pair at 0.8 and an impostor at 0.2, but for fold 3's: 0.1 and 0.7.

    0.8 is the best threshold of any nine folds; it is wrong only about fold 3's genuine pair.
    """
    scores = [(0.1, 0.7) if fold == 3 else (0.8, 0.2) for fold in range(10)]
    given = Given(
        [score for both in scores for score in both],
        ["a", "b"] * 10,
        ["a", "c"] * 10,
        [fold for fold in range(10) for _ in range(2)],
    )
    evaluated = verification.result(given.whole())
    folds = evaluated.tables["folds"].to_pydict()
    assert number(evaluated, "LFW_accuracy") == pytest.approx(0.95)
    assert number(evaluated, "LFW_standard_error") == pytest.approx(
        0.05
    )  # sqrt((9 * 0.05² + 0.45²) / 9 / 10)
    assert folds["accuracy"] == [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert folds["threshold"] == [0.8] * 10
    assert (folds["fold"], folds["genuine"], folds["impostor"]) == (list(range(10)), [1] * 10, [1] * 10)
    assert folds["failed"] == [0] * 10


@given(pairs(folds=True))
@settings(max_examples=60)
def test_folds_are_those_of_every_threshold_in_turn(given: Given) -> None:
    assert given.folds is not None
    folds, same = np.array(given.folds), given.same
    accuracies = []
    for fold in np.unique(folds):
        others = folds != fold
        candidates = [np.inf, *sorted({s for s in given.known[others] if s > -99}, reverse=True)]
        right = [np.mean((given.known >= each)[others] == same[others]) for each in candidates]
        best = candidates[int(np.argmax(right))]
        accuracies.append(np.mean((given.known >= best)[~others] == same[~others]))
    evaluated = verification.result(given.whole(), replicates=0)
    assert evaluated.tables["folds"]["accuracy"].to_pylist() == pytest.approx(accuracies)
    assert number(evaluated, "LFW_accuracy") == pytest.approx(np.mean(accuracies))
    error = np.std(accuracies, ddof=1) / sqrt(len(accuracies))
    assert number(evaluated, "LFW_standard_error") == pytest.approx(error)


@given(pairs(folds=True, most=12), st.data())
@settings(max_examples=25)
def test_any_split_in_any_order_gives_what_one_piece_gives(given: Given, data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(given.scores))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    pieces = [given.piece(rows[start:end]) for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    pieces = pickle.loads(pickle.dumps(pieces))
    nested = verification.merge([pieces[0], verification.merge(pieces[1:])]) if pieces[1:] else pieces[0]
    for merged in (verification.merge(pieces), nested):
        assert verification.result(merged, replicates=5) == verification.result(given.whole(), replicates=5)


def test_an_interval_is_the_percentiles_of_pairs_weighted_by_their_people() -> None:
    random = np.random.default_rng(0)
    first, second = random.choice(PEOPLE, (2, 60)).tolist()
    given = Given(random.integers(0, 9, 60).astype(float).tolist(), first, second)
    weights = dict(zip(PEOPLE, poisson_weights(PEOPLE, 60).astype(int), strict=True))
    each = np.array([weights[a] * (1 if a == b else weights[b]) for a, b in zip(first, second, strict=True)])
    areas = [
        roc_auc_score(given.same, given.known, sample_weight=row)
        for row in each.T
        if row[given.same].any() and row[~given.same].any()
    ]
    expected = percentiles(np.array(areas))
    value = verification.result(given.whole(), replicates=60).metrics["AUC"]
    assert (value.low, value.high) == pytest.approx(expected, rel=1e-12)
    assert expected[0] != expected[1]
    assert value.replicates is not None
    assert len(value.replicates) == 60  # One that has no value keeps its place, for pairing.


def test_what_cannot_be_known_says_why() -> None:
    genuine = verification.result(Given([1.0, 2.0], ["a", "b"], ["a", "b"]).whole())
    assert genuine.metrics["EER"].value is None
    assert genuine.metrics["EER"].reason == "no impostor pairs"
    assert genuine.tables["roc"].num_rows == 0
    assert "LFW_accuracy" not in genuine.metrics
    impostors = verification.result(Given([1.0], ["a"], ["b"], [0]).whole())
    assert impostors.metrics["TAR@FAR=1e-3"].reason == "no genuine pairs"
    assert impostors.metrics["LFW_accuracy"].reason == "only one fold"
    few = verification.result(verification.partial(*gaussians(2.0, 999)), (1e-2, 1e-3), replicates=2)
    assert few.metrics["TAR@FAR=1e-2"].value is not None
    assert few.metrics["TAR@FAR=1e-3"].reason == (
        "999 impostor pairs can't resolve FAR 1e-3: 1,000 are needed"
    )
    some = Given([1.0, 2.0], ["a", "b"], ["a", "b"])
    mixed = verification.merge([some.whole(), Given([1.0], ["a"], ["b"], [0]).whole()])
    assert verification.result(mixed).metrics["LFW_accuracy"].reason == "2 of 3 pairs have no fold"


def test_a_long_curve_is_thinned_but_for_its_ends_and_the_rates_asked_for() -> None:
    random = np.random.default_rng(0)
    same = random.random(30_000) < 0.3
    first = [str(place) for place in range(len(same))]
    second = [name if one else f"{name}'" for name, one in zip(first, same, strict=True)]
    scores = random.normal(size=len(same)) + 2 * same
    evaluated = verification.result(verification.partial(scores, same, first, second), replicates=1)
    roc = evaluated.tables["roc"].to_pandas()
    assert 500 < len(roc) <= verification.POINTS
    assert (roc["threshold"].iloc[0], roc["threshold"].iloc[-1]) == (np.inf, scores.min())
    assert roc["far"].is_monotonic_increasing
    for far in verification.FARS:
        assert roc[roc["far"] <= far]["tar"].max() == number(
            evaluated, f"TAR@FAR={verification.written(far)}"
        )


def test_scores_and_names_may_be_arrow() -> None:
    scores, names = pa.chunked_array([[0.5], [None]]), pa.chunked_array([["a"], ["b"]])
    pairs = verification.partial(scores, [True, False], names, pa.array(["a", "c"]))
    assert np.isnan(pairs.scores).tolist() == [False, True]


@pytest.mark.parametrize(
    ("scores", "same", "second", "folds", "complaint"),
    [
        ([0.5], [True, False], ["a", "b"], None, "lengths differ"),
        ([np.inf, 0.5], [True, False], ["a", "c"], None, "infinite"),
        ([0.5, 0.5], [True, True], ["a", "c"], None, "contradicts the two people's names in 1 of 2"),
        ([0.5, 0.5], [True, False], ["a", None], None, "1 are null"),
        ([0.5, 0.5], [True, False], ["a", "c"], [0, 40_000], "folds from 0"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(
    scores: list[float], same: list[bool], second: list[str], folds: list[int] | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        verification.partial(scores, same, ["a", "b"], second, folds)


def test_a_rate_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        verification.result(Given([1.0], ["a"], ["b"]).whole(), [0.0])
