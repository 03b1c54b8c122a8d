"""What a calibration was measured by: bins, ratios and pairs, beside what is counted pair by pair."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cnnbatch.index.known_pairs import KnownPairs
from cnnbatch.index.pair_figures import BINS, FEWEST, HARDEST, figures_of, hardest, histogram, ratios
from cnnbatch.metrics.intervals import key_hashes
from cnnbatch.metrics.verification import FacePairs


def pairs(count: int = 4_000, seed: int = 0) -> FacePairs:
    """Return pairs whose logarithm of the likelihood ratio is 30 s - 15; some have no similarity."""
    random = np.random.default_rng(seed)
    same = random.random(count) < 0.4
    scores = np.where(same, 0.65, 0.35) + 0.1 * random.normal(size=count)
    scores[random.random(count) < 0.02] = np.nan
    people = key_hashes(f"p{one}" for one in range(80))
    first = random.integers(0, 80, count)
    second = np.where(same, first, (first + random.integers(1, 80, count)) % 80)
    return FacePairs(scores, same, people[first], people[second], np.full(count, -1, np.int16))


def test_the_histogram_counts_each_pair_that_has_a_similarity_once() -> None:
    found, some = histogram(pairs()), pairs()
    known = ~np.isnan(some.scores)
    assert sum(found.genuine) == (known & some.same).sum()
    assert sum(found.impostor) == (known & ~some.same).sum()
    width = (found.high - found.low) / BINS
    inside = (some.scores >= found.low + 9 * width) & (some.scores < found.low + 10 * width)
    assert found.impostor[9] == (inside & ~some.same).sum()


def test_ratios_are_those_of_the_pairs_in_each_bin_and_about_what_the_law_gives() -> None:
    some = pairs()
    known = ~np.isnan(some.scores)
    found = ratios(some, replicates=60)
    assert len(found) > 5
    for place, one in enumerate(found):
        end = some.scores <= one.end if place == len(found) - 1 else some.scores < one.end
        within = known & (some.scores >= one.start) & end
        assert (one.genuine, one.impostor) == ((within & some.same).sum(), (within & ~some.same).sum())
        assert min(one.genuine, one.impostor) >= FEWEST
        shares = [(within & kind).sum() / (known & kind).sum() for kind in (some.same, ~some.same)]
        assert one.ratio == pytest.approx(np.log(shares[0] / shares[1]))
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.ratio <= one.high
        # Pairs of one kind lie to one side in a wide bin: the middle of both is not quite where the law is.
        assert one.ratio == pytest.approx(30 * one.similarity - 15, abs=1.2)


def test_the_hardest_pairs_are_strangers_most_alike_and_one_persons_least() -> None:
    some = pairs()
    rows = np.arange(len(some.scores))
    ids = pa.chunked_array([[f"row {one}" for one in range(len(rows) + 1)]])
    found = hardest(KnownPairs(some, rows, rows + 1), ids)
    strangers = np.flatnonzero(~some.same & ~np.isnan(some.scores))
    worst = strangers[np.argsort(-some.scores[strangers])[:HARDEST]]
    assert [one.a for one in found if not one.same] == [f"row {one}" for one in worst]
    assert [one.b for one in found if not one.same] == [f"row {one + 1}" for one in worst]
    assert [one.similarity for one in found if one.same] == sorted(
        some.scores[some.same & (some.scores < 2)]
    )[:HARDEST]


def test_the_figures_have_the_numbers_of_verification() -> None:
    some = pairs(600)
    rows = np.arange(600)
    found = figures_of(KnownPairs(some, rows, rows), pa.chunked_array([[str(one) for one in rows]]), 10)
    assert {"EER", "AUC", "TAR@FAR=1e-1", "TAR@FAR=1e-6"} <= found.metrics.keys()
    assert "can't resolve" in str(found.metrics["TAR@FAR=1e-6"].reason)
    assert found.roc[0].similarity is None  # It accepts none.
    shares = [(one.false, one.share) for one in found.roc]
    assert shares == sorted(shares)
    assert shares[0] == (0, 0)
