"""COCO's matching of detections to truth, for all images, thresholds and ranges of area at once.

Only pairs that overlap enough for the lowest threshold are compared, and they are few: the first
detection of every image and class in one step, then every second, and so on. The steps are as many as
one image and class has such detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnbatch.metrics.objects import ObjectPairs, ranks

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds of IoU."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs of a detection (``first``) and a truth (``second``), with their ``overlap`` (p,).

    ``group`` is each pair's image and class, ascending; within a group the detections come best first.
    """

    pairs: ObjectPairs
    overlap: NDArray[np.float64]
    group: NDArray[np.int64]

    def take(self, kept: NDArray[np.bool_]) -> Candidates:
        """Return some of the pairs."""
        return Candidates(
            ObjectPairs(self.pairs.first[kept], self.pairs.second[kept]), self.overlap[kept], self.group[kept]
        )


def match(
    candidates: Candidates,
    detections: int,
    ignored: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    thresholds: Sequence[float] | NDArray[np.float64] = THRESHOLDS,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match greedily; return which detections are matched, and which of them to something ignored.

    ``ignored`` (G, A) says which truths count in no range of area; ``crowd`` (G,) which may be matched
    again and again. Returns two arrays (detections, T, A). A detection takes the free truth of greatest
    overlap, one that counts before one that is ignored, of equal ones the last (pycocotools,
    ``COCOeval.evaluateImg``).
    """
    least = np.minimum(np.asarray(thresholds), 1 - 1e-10)
    candidates = candidates.take(candidates.overlap >= least.min())
    shape = (len(least), ignored.shape[1])
    matched, to_ignored = np.zeros((2, detections, *shape), np.bool_)
    taken = np.zeros((len(crowd), *shape), np.bool_)
    for step in _steps(candidates):
        first, second = step.pairs.first, step.pairs.second
        starts = np.flatnonzero(np.diff(first, prepend=-1))
        free = ~taken[second] | crowd[second, None, None]
        free &= (step.overlap[:, None] >= least)[:, :, None]
        preference = _preference(step, len(first)).astype(np.int32)[:, None] + np.where(
            ignored[second], 0, len(first)
        ).astype(np.int32)
        wanted = np.where(free, preference[:, None, :], 0)
        best = np.maximum.reduceat(wanted, starts)
        detection = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(first)))
        chosen = (wanted == best[detection]) & free
        pair, at, area = np.nonzero(chosen)
        taken[second[pair], at, area] = True
        matched[first[pair], at, area] = True
        to_ignored[first[pair], at, area] = ignored[second[pair], area]
    return matched, to_ignored


def _steps(candidates: Candidates) -> list[Candidates]:
    """Cut the pairs into steps: the n-th has those of the n-th detection of every group."""
    first = candidates.pairs.first
    new = np.diff(first, prepend=-1) != 0
    of_detection = ranks(candidates.group[new])
    turn = of_detection[np.cumsum(new) - 1]
    order = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[order], np.arange(int(turn.max(initial=-1)) + 2))
    return [
        Candidates(
            ObjectPairs(first[some], candidates.pairs.second[some]),
            candidates.overlap[some],
            candidates.group[some],
        )
        for some in (order[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True))
    ]


def _preference(step: Candidates, count: int) -> NDArray[np.int64]:
    """Return 1 … count, greater where the overlap is, and where it is equal for the later truth."""
    order = np.lexsort((step.pairs.second, step.overlap))
    preference = np.empty(count, np.int64)
    preference[order] = np.arange(1, count + 1)
    return preference
