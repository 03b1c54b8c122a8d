"""Up to what size an embedder is fit for search: where a goal is crossed, and what else is said."""

from __future__ import annotations

import pytest

from cnnbatch.index.by_size import AtSize, Missed
from cnnbatch.index.calibration import Threshold
from cnnbatch.index.fitness import fitness, limit, support


def sizes(*shares: tuple[int, float, float, float], rate: float = 0.1, measured: int = 1000) -> list[AtSize]:
    """Return sizes with shares of misses and their intervals."""
    return [
        AtSize(rows, Threshold(rate, 0.5), Missed(share, low, high, 50), rows // 2, None, rows > measured)
        for rows, low, share, high in shares
    ]


def test_the_limit_is_where_a_line_over_the_logarithm_of_the_size_crosses_the_goal() -> None:
    assert limit([(100, 0.0), (1000, 0.2)], 0.1).rows == pytest.approx(10**2.5)
    assert limit([(100, 0.05), (200, 0.1), (400, 0.2)], 0.1).rows == pytest.approx(200)
    assert limit([(100, 0.2), (200, 0.3)], 0.1).rows is None
    assert not limit([(100, 0.2), (200, 0.3)], 0.1).is_kept
    assert limit([(100, 0.05), (200, 0.06)], 0.1).is_kept


def test_a_size_within_what_was_measured_is_said_with_its_interval() -> None:
    found = fitness(sizes((100, 0.01, 0.02, 0.04), (1000, 0.08, 0.18, 0.25)), 0.1)
    assert found == (
        "Where at most 1 in 10 strangers may be found and 1 in 10 people missed, the embedder is fit for "
        "searches of up to 320 embeddings (95 % interval: 190 to more than 1,000)."
    )


def test_a_size_beyond_is_marked_as_extrapolated() -> None:
    known = [(100, 0.01, 0.02, 0.04), (1000, 0.02, 0.04, 0.06), (2000, 0.05, 0.16, 0.3)]
    found = fitness(sizes(*known), 0.1)
    assert "up to 1,400 embeddings, which is extrapolated (95 % interval: 1,100 to more than 2,000)" in found
    assert "up to more than 2,000 embeddings, which is extrapolated" in fitness(sizes(*known), 0.1, 0.2)


def test_what_is_fit_at_no_size_and_what_is_not_known_are_said() -> None:
    found = fitness(sizes((100, 0.05, 0.2, 0.3), (1000, 0.3, 0.4, 0.5)), 0.1)
    assert "the embedder is not fit for search, not even among 100 embeddings" in found
    assert found.endswith("(95 % interval: fewer than 100 to 160).")
    never = fitness(sizes((100, 0.2, 0.3, 0.4), (1000, 0.3, 0.4, 0.5)), 0.1)
    assert never.endswith("not even among 100 embeddings (nor at an end of the 95 % interval).")
    unknown = AtSize(1000, Threshold(0.001, None, reason="too few"), Missed(None, None, None, 50))
    assert fitness([unknown], 0.001).endswith("is not known: too few.")
    without = AtSize(1000, Threshold(0.1, 0.5), Missed(None, None, None, 0))
    assert "people of whom there are several pictures" in fitness([without], 0.1)


def test_the_strangers_that_a_larger_size_needs_are_counted() -> None:
    known = sizes((100, 0, 0, 0), (1000, 0, 0, 0), (4000, 0, 0, 0))
    assert support(known, 0.1, 4000) is None
    assert support(known, 0.1, 1_000_000) == (
        "At 1 in 10 nothing is said beyond 4,000 embeddings: for 1,000,000 about 100,000 strangers are "
        "needed."
    )
