"""The rule of how much of a network to tune, by how many images there are and how like ImageNet's they are.

It is a table of two by two. Few and similar: a new head. Few and dissimilar: a new head on earlier features,
with stronger augmentation. Many and similar: the head and the last blocks. Many and dissimilar: all.

How like they are is read from the network's depth: the features of its last quarter are those that ImageNet
asked for, so where they tell the classes no better than earlier ones, the images are unlike ImageNet's. How
well a probe does on the last features alone says that badly: some unlike classes are easily told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cnnbatch.config.train import Strategy
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.training import probes
from cnnbatch.training.messages import Decision
from cnnbatch.truth.classes import named_alike

FEW = 100
"""Images a class below which a training set is small."""
SIMILAR = 0.4
"""The part of the errors of probes on the second quarter's features that the last quarter's take away."""
KNOWN_SIMILAR = 0.6
"""How far between chance (0) and always right (1) a linear probe on the last features has to come, for a
network whose earlier features can't be had."""
QUARTERS = 4

Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Depth:
    """What the features of a block tell of the classes: a linear probe's accuracy, and LogME."""

    block: str
    probe: float
    evidence: float


def figures(
    features: Features, classes: probes.Classes, data: TrainingData, known: Sequence[str]
) -> dict[str, float]:
    """Return what is told by the last ``features`` [N, D] of images of ``classes`` [N], and their number."""
    scaled = probes.standardized(features)
    chance = float(np.bincount(classes).max() / len(classes))
    return {
        "images_per_class": data.images / len(data.classes),
        "chance": chance,
        "linear_probe": probes.linear_probe(scaled, classes),
        "nearest_neighbours": probes.nearest_neighbours(scaled, classes),
        "log_evidence": probes.log_evidence(scaled, classes),
        "classes_known": len(named_alike(data.classes, known)) / len(data.classes),
    }


def by_table(found: Mapping[str, float], depths: Sequence[Depth] = ()) -> Decision:
    """Return the strategy that the table has for what the last features tell, and those at ``depths``."""
    similar, figure, reason = _likeness(found, depths)
    found = {**found, "similarity": figure}
    profile = [asdict(depth) for depth in depths]
    if found["classes_known"] == 1:
        why = "the network knows all of these classes already, by their names"
        return Decision("as_is", why, found, depths=profile)
    few = found["images_per_class"] < FEW
    strategies: Mapping[tuple[bool, bool], Strategy] = {
        (True, True): "head",
        (True, False): "head",
        (False, True): "last_blocks",
        (False, False): "all",
    }
    strong, block = few and not similar, None
    if strong and len(depths) >= QUARTERS:
        block = _best_block(depths)
    why = (
        f"{'few' if few else 'many'} images, {found['images_per_class']:.0f} a class, and "
        f"{'like' if similar else 'unlike'} those it was trained on: {reason}"
    )
    if strong:
        why += f"; the head reads the features of {block}" * (block is not None)
        why += "; so few that their colours are also changed at random"
    return Decision(strategies[few, similar], why, found, strong, block, profile)


def _likeness(found: Mapping[str, float], depths: Sequence[Depth]) -> tuple[bool, float, str]:
    """Say whether the images are like those that the network learned from, by which figure, and in words."""
    probe, chance = found["linear_probe"], found["chance"]
    if len(depths) < QUARTERS:
        figure = max(0.0, (probe - chance) / max(1 - chance, 1e-9))
        words = f"a linear probe on its features is right in {probe:.0%}, chance in {chance:.0%}"
        return figure >= KNOWN_SIMILAR, figure, words
    quarters = [float(np.mean([depth.probe for depth in some])) for some in _quarters(depths)]
    figure = max(0.0, 1 - (1 - quarters[-1]) / max(1 - quarters[1], 1e-9))
    words = (
        f"linear probes on features of its second quarter are right in {quarters[1]:.0%}, on those of its "
        f"last in {quarters[-1]:.0%}, chance in {chance:.0%}"
    )
    return figure >= SIMILAR, figure, words


def _best_block(depths: Sequence[Depth]) -> str | None:
    """Return the end of the quarter with the greatest evidence; None for the last, whose end the head reads.

    LogME, since few images give a probe few errors to count.
    """
    quarters = _quarters(depths)
    evidences = [float(np.mean([depth.evidence for depth in some])) for some in quarters]
    best = int(np.argmax(evidences))
    return None if best == QUARTERS - 1 else quarters[best][-1].block


def _quarters(depths: Sequence[Depth]) -> list[Sequence[Depth]]:
    count = len(depths)
    cuts = [place * count // QUARTERS for place in range(QUARTERS + 1)]
    return [depths[begin:end] for begin, end in pairwise(cuts)]
