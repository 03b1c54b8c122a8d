"""How much of a network to tune, by how many images there are and how like ImageNet's they are.

The rule is a table of two by two. Few and similar: a new head. Few and dissimilar: a new head on earlier
features, with strong augmentation. Many and similar: the head and the last blocks. Many and dissimilar: all.

How like they are is read from the network's depth: the features of its last quarter are those that ImageNet
asked for, so where they tell the classes no better than earlier ones, the images are unlike ImageNet's. How
well a probe does on the last features alone says that badly: some unlike classes are easily told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch import result
from cnnbatch.errors import UserError
from cnnbatch.job import MapJob, TrainJob
from cnnbatch.naming import named_alike
from cnnbatch.output import Output
from cnnbatch.run import RunOptions, run
from cnnbatch.tasks.classify import Classify
from cnnbatch.training import similarity
from cnnbatch.training.collecting import Collected
from cnnbatch.training.order import Decision
from cnnbatch.training.parts import Parts
from cnnbatch.training.recipe import TrainingData
from cnnbatch.training.spec import Strategy

if TYPE_CHECKING:
    from cnnbatch.models.depth import Tap

FEW = 100
"""Images a class below which a training set is small."""
SIMILAR = 0.4
"""The part of the errors of probes on the second quarter's features that the last quarter's take away."""
KNOWN_SIMILAR = 0.6
"""How far between chance (0) and always right (1) a linear probe on the last features has to come, for a
network whose earlier features can't be had."""
DEPTHS = 12
"""Blocks whose features are looked at."""
QUARTERS = 4
LOOKED_AT = 2000
"""Training images whose features are looked at."""
LEAST_STEPS = 150
"""Steps that a training takes at least: of a few images an epoch is one or two."""
LESSON_EPOCHS = 5
EPOCHS: Mapping[Strategy, tuple[int, int]] = {
    "as_is": (0, 0),
    "head": (20, 10),
    "last_blocks": (15, 8),
    "all": (15, 8),
    "scratch": (60, 30),
}
"""How often every picture is seen where the job does not say: of a small set, and of a large one."""


Features = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Depth:
    """What the features of a block tell of the classes: a linear probe's accuracy, and LogME."""

    block: str
    probe: float
    evidence: float


def epochs_for(job: TrainJob, strategy: Strategy, data: TrainingData) -> int:
    """Return the number of epochs: the job's, else what suits the strategy and the size of the set."""
    if strategy == "as_is":
        return 0
    if job.train.epochs != "auto":
        return job.train.epochs
    small, large = EPOCHS[strategy]
    epochs = small if data.images / len(data.classes) < FEW else large
    epochs = max(epochs, math.ceil(LEAST_STEPS / math.ceil(data.images / job.train.batch)))
    return min(epochs, LESSON_EPOCHS) if job.lesson else epochs


def decide(
    job: TrainJob, parts: Parts, collected: Collected, output: Output, note: Callable[[str], None]
) -> Decision:
    """Return the strategy: the job's, else by measuring; kept in the output."""
    if job.train.strategy != "auto":
        return Decision(job.train.strategy, "the job says so", features=job.train.features)
    kept = output.decided("training/strategy")
    if kept is not None:
        return Decision(**kept)
    if not isinstance(job.task, Classify):
        return Decision("all", "the task has no features by which to choose")
    note("looking at the network's features of the training images, to choose how much of it to tune")
    found = _measured(job, job.task, parts, collected, output)
    output.decide("training/strategy", asdict(found))
    return found


def _measured(job: TrainJob, task: Classify, parts: Parts, collected: Collected, output: Output) -> Decision:
    """Predict some training images as they are, with their features, by a job of its own in the output."""
    where, data = output.path("_job", "training", "features"), collected.data
    share = min(1.0, parts.train.sample * min(1.0, LOOKED_AT / collected.listed))
    taps = task.taps(DEPTHS)
    blocks = tuple(one.block for one in taps)
    looking = MapJob(
        task=task.model_copy(update={"embedding": blocks or True, "classes": None, "top_k": 1}),
        input=parts.train.model_copy(update={"sample": share}),
        compute=job.compute,
        output=job.output.model_copy(update={"url": where}),
        max_failed=1.0,
    )
    run(looking, RunOptions(quiet=True, only_rows=True))
    known = (Output(where, output.storage).decided("classes") or {}).get("names", ())
    rows = result.open(where, output.storage).arrow(["key", "embedding", "error"])
    good = rows.filter(rows["error"].is_null())
    labels = _labels(Output(where, output.storage))
    numbers = {name: number for number, name in enumerate(data.classes)}
    known_here = pc.is_in(good["key"], pa.array([key for key, label in labels.items() if label in numbers]))
    good = good.filter(known_here)
    keys: list[Any] = good["key"].to_pylist()
    classes = np.array([numbers[labels[key]] for key in keys], np.int64)
    if not len(classes):
        raise UserError("input: none of the training images that were looked at can be read")
    features = np.array(good["embedding"].to_pylist(), np.float32)
    depths = list(_depths(taps, features, classes))
    last = features[:, features.shape[1] - taps[-1].width :] if taps else features
    return by_table(figures(last, classes, data, known), depths)


def _depths(taps: Sequence[Tap], features: Features, classes: similarity.Classes) -> Iterator[Depth]:
    """Yield what the features of each block tell, of ``features`` [N, D] of all of them."""
    ends = np.cumsum([one.width for one in taps])
    for one, end in zip(taps, ends, strict=True):
        scaled = similarity.standardized(features[:, end - one.width : end])
        yield Depth(
            one.block, similarity.linear_probe(scaled, classes), similarity.log_evidence(scaled, classes)
        )


def _labels(output: Output) -> dict[str, str]:
    """Return the class of each image that an output has, from the truth beside its parts."""
    found: dict[str, str] = {}
    for index in output.finished():
        with output.storage.open(output.truth(index)) as file:
            rows: Any = pq.read_table(file, columns=["image_id", "label"])
        found |= zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return found


def figures(
    features: Features, classes: similarity.Classes, data: TrainingData, known: Sequence[str]
) -> dict[str, float]:
    """Return what is told by the last ``features`` [N, D] of images of ``classes`` [N], and their number."""
    scaled = similarity.standardized(features)
    chance = float(np.bincount(classes).max() / len(classes))
    return {
        "images_per_class": data.images / len(data.classes),
        "chance": chance,
        "linear_probe": similarity.linear_probe(scaled, classes),
        "nearest_neighbours": similarity.nearest_neighbours(scaled, classes),
        "log_evidence": similarity.log_evidence(scaled, classes),
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
        why += "; so few that they are also changed more at random"
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
