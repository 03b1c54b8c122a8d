"""Whether what a search finds is good enough to be taken for the same person, at the size of the index."""

from __future__ import annotations

from dataclasses import dataclass

from cnnbatch.index.calibrated import Calibrated
from cnnbatch.index.calibration import Threshold
from cnnbatch.storage import redact


@dataclass(frozen=True, slots=True)
class SearchDecision:
    """What a similarity means in a search: ``threshold`` is that of the stated rate, or why there is none.

    ``prior`` is how probable a match is before its similarity is known.
    """

    threshold: Threshold
    prior: float
    calibrated: Calibrated | None

    def accepts(self, similarity: float) -> bool | None:
        """Say whether a match is taken for the same person; None where nothing decides."""
        least = self.threshold.similarity
        return None if least is None else similarity >= least

    def probability(self, similarity: float) -> float | None:
        """Return how probable it is that a match is of the same person; None where nothing is calibrated."""
        if self.calibrated is None:
            return None
        return float(self.calibrated.pairs.probabilities([similarity], self.prior)[0])


def search_decision(
    calibrated: Calibrated | None,
    index: str,
    rate: float,
    prior: float,
    size: int,
    people: int | None = None,
) -> SearchDecision:
    """Return what decides about searches of ``size`` embeddings at a false positive identification ``rate``.

    ``people`` is how many people these are of, where that is known; ``index`` is the address of the index,
    for its name in the reason.
    """
    if calibrated is None:
        reason = f"{redact(index)} is not calibrated: give cnnbatch calibrate with --absent"
        return SearchDecision(Threshold(rate, None, reason=reason), prior, None)
    return SearchDecision(calibrated.search_threshold(rate, size, people), prior, calibrated)
