"""Calibration: closed forms of normal distributions, thresholds by brute force, what data can't support."""

from __future__ import annotations

import numpy as np
import pytest

from cnnbatch.errors import UserError
from cnnbatch.index.calibration import calibrate, cost_of, sigmoid, thresholds
from cnnbatch.metrics import verification
from cnnbatch.metrics.verification import FacePairs


def pairs_of(genuine: np.ndarray, impostor: np.ndarray) -> FacePairs:
    """Return pairs of which each has people of its own."""
    scores = np.concatenate([genuine, impostor])
    same = np.arange(len(scores)) < len(genuine)
    first = [f"a{place}" for place in range(len(scores))]
    second = [name if one else f"b{name}" for name, one in zip(first, same, strict=True)]
    return verification.partial(scores, same, first, second)


def normal_pairs(count: int = 40_000) -> FacePairs:
    """Return pairs whose similarities are normal: 0.6 with deviation 0.1 of one person, 0.1 of two."""
    random = np.random.default_rng(5)
    return pairs_of(random.normal(0.6, 0.1, count), random.normal(0.1, 0.1, 4 * count))


def test_two_normal_distributions_give_their_own_likelihood_ratio() -> None:
    found = calibrate(normal_pairs(), replicates=2)
    # log N(s; 0.6, 0.1) - log N(s; 0.1, 0.1) = (0.6 - 0.1) / 0.01 * s - (0.36 - 0.01) / 0.02
    assert found.slope == pytest.approx(50, rel=0.03)
    assert found.offset == pytest.approx(-17.5, rel=0.03)
    assert found.probabilities([0.35], prior=0.5)[0] == pytest.approx(0.5, abs=0.05)
    # A prior of 1 in 1,000 shifts even odds by its own odds.
    even = found.log_likelihood_ratios([0.35])[0]
    assert found.probabilities([0.35], prior=1e-3)[0] == pytest.approx(1 / (1 + 999 * np.exp(-even)))


def test_the_line_is_where_the_cost_is_least() -> None:
    random = np.random.default_rng(1)
    genuine, impostor = random.normal(0.5, 0.2, 300), random.normal(0.2, 0.1, 900)
    found = calibrate(pairs_of(genuine, impostor), replicates=2)
    costs = [
        cost_of(slope * genuine + offset, slope * impostor + offset)
        for slope in np.linspace(0.5, 1.5, 41) * found.slope
        for offset in np.linspace(0.5, 1.5, 41) * found.offset
    ]
    assert found.cost <= min(costs) + 1e-3  # Platt's targets shift the optimum by a part in 300.
    assert cost_of(np.zeros(5), np.zeros(9)) == pytest.approx(1)


def test_pairs_that_do_not_overlap_have_a_finite_line() -> None:
    found = calibrate(pairs_of(np.full(20, 0.9), np.full(20, 0.1)), rates=[0.1], replicates=2)
    assert np.isfinite([found.slope, found.offset]).all()
    # Platt's targets: the probability of what was seen 20 times of 20 is 21/22.
    assert found.probabilities([0.9], 0.5)[0] == pytest.approx(21 / 22, rel=1e-3)
    assert found.probabilities([0.1], 0.5)[0] == pytest.approx(1 / 22, rel=2e-2)


def test_thresholds_are_the_least_that_keep_the_rate() -> None:
    random = np.random.default_rng(3)
    impostor = random.normal(0, 0.1, 2000).round(2)  # With ties.
    pairs = pairs_of(random.normal(0.6, 0.1, 50), impostor)
    for one in thresholds(pairs, [1e-1, 1e-2, 1e-3], replicates=20):
        assert one.similarity is not None
        assert one.low is not None
        assert one.high is not None
        assert (impostor >= one.similarity).mean() <= one.rate
        lower = impostor[impostor < one.similarity].max()
        assert (impostor >= lower).mean() > one.rate
        assert one.low <= one.similarity <= one.high


def test_a_threshold_above_all_pairs_is_a_number_that_accepts_none() -> None:
    [one] = thresholds(pairs_of(np.full(20, 0.9), np.full(20, 0.5)), [0.1], replicates=2)
    assert one.similarity is not None
    assert 0.5 < one.similarity < 0.5 + 1e-9


def test_a_rate_that_the_pairs_can_not_support_says_how_many_are_needed() -> None:
    found = calibrate(normal_pairs(200), replicates=2)
    assert found.threshold(1e-2).similarity is not None
    unsupported = found.threshold(1e-4)
    assert unsupported.similarity is None
    assert unsupported.reason == "800 pairs of two people can't resolve a rate of 1e-4: 10,000 are needed"
    with pytest.raises(
        UserError, match=r"expected a false accept rate that was calibrated \(1e-2, .*\), got 2e-1"
    ):
        found.threshold(0.2)


def test_failed_pairs_are_never_accepted_and_stay_in_the_rate() -> None:
    pairs = pairs_of(np.full(20, 0.9), np.append(np.linspace(0.1, 0.5, 50), np.full(50, np.nan)))
    found = calibrate(pairs, rates=[0.1], replicates=2)
    assert found.failed == 50
    assert found.impostor == 50
    threshold = found.threshold(0.1).similarity
    assert threshold is not None
    assert np.sum(np.linspace(0.1, 0.5, 50) >= threshold) == 10  # Of 100 pairs.


@pytest.mark.parametrize(
    ("genuine", "impostor", "words"),
    [
        (
            np.full(3, 0.9),
            np.full(30, 0.1),
            "at least 10 pairs of one person with a face in each picture, got 3",
        ),
        (np.full(30, 0.9), np.full(0, 0.1), "at least 10 pairs of two people .* got 0"),
        (np.full(30, 0.1), np.full(30, 0.9), "no more alike than those of two"),
    ],
)
def test_pairs_that_say_nothing_are_refused(genuine: np.ndarray, impostor: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        calibrate(pairs_of(genuine, impostor), replicates=2)


def test_a_prior_is_between_0_and_1_and_large_ratios_do_not_overflow() -> None:
    found = calibrate(normal_pairs(200), replicates=2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.probabilities([0.5], prior=0)
    assert sigmoid(np.array([-1e6, 0.0, 1e6])).tolist() == [0.0, 0.5, 1.0]
