"""How much of a network to tune, by how many images there are and how like ImageNet's they are.

The rule is a table of two by two: few images: a new head, and where they are dissimilar with strong
augmentation; many and similar: the head and the last blocks; many and dissimilar: all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

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
from cnnbatch.training import similarity
from cnnbatch.training.collecting import Collected
from cnnbatch.training.order import Decision
from cnnbatch.training.parts import Parts
from cnnbatch.training.recipe import TrainingData
from cnnbatch.training.spec import Strategy

FEW = 100
"""Images a class below which a training set is small."""
SIMILAR = 0.6
"""How far between chance (0) and always right (1) a linear probe on frozen features has to come."""
LOOKED_AT = 2000
"""Training images whose features are looked at."""
LEAST_STEPS = 150
"""Steps that a training takes at least: of a few images an epoch is one or two."""
LESSON_EPOCHS = 5
STRONG = "; so few that they are also changed more at random"
EPOCHS: Mapping[Strategy, tuple[int, int]] = {
    "as_is": (0, 0),
    "head": (20, 10),
    "last_blocks": (15, 8),
    "all": (15, 8),
    "scratch": (60, 30),
}
"""How often every picture is seen where the job does not say: of a small set, and of a large one."""


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
        return Decision(job.train.strategy, "the job says so")
    kept = output.decided("training/strategy")
    if kept is not None:
        return Decision(**kept)
    if "embedding" not in type(job.task).model_fields:
        return Decision("all", "the task has no features by which to choose")
    note("looking at the network's features of the training images, to choose how much of it to tune")
    found = _measured(job, parts, collected, output)
    output.decide("training/strategy", asdict(found))
    return found


def _measured(job: TrainJob, parts: Parts, collected: Collected, output: Output) -> Decision:
    """Predict some training images as they are, with their features, by a job of its own in the output."""
    where, data = output.path("_job", "training", "features"), collected.data
    share = min(1.0, parts.train.sample * min(1.0, LOOKED_AT / collected.listed))
    looking = MapJob(
        task=job.task.model_copy(update={"embedding": True, "classes": None, "top_k": 1}),
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
    return by_table(figures(features, classes, data, known))


def _labels(output: Output) -> dict[str, str]:
    """Return the class of each image that an output has, from the truth beside its parts."""
    found: dict[str, str] = {}
    for index in output.finished():
        with output.storage.open(output.truth(index)) as file:
            rows: Any = pq.read_table(file, columns=["image_id", "label"])
        found |= zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return found


def figures(
    features: NDArray[np.float32], classes: similarity.Classes, data: TrainingData, known: Sequence[str]
) -> dict[str, float]:
    """Return what both axes of the table are read from, for features [N, D] of images of ``classes`` [N]."""
    scaled = similarity.standardized(features)
    chance = float(np.bincount(classes).max() / len(classes))
    probe = similarity.linear_probe(scaled, classes)
    return {
        "images_per_class": data.images / len(data.classes),
        "chance": chance,
        "linear_probe": probe,
        "nearest_neighbours": similarity.nearest_neighbours(scaled, classes),
        "log_evidence": similarity.log_evidence(scaled, classes),
        "similarity": max(0.0, (probe - chance) / max(1 - chance, 1e-9)),
        "classes_known": len(named_alike(data.classes, known)) / len(data.classes),
    }


def by_table(found: Mapping[str, float]) -> Decision:
    """Return the strategy that the table has for what was measured."""
    if found["classes_known"] == 1:
        return Decision("as_is", "the network knows all of these classes already, by their names", found)
    few, similar = found["images_per_class"] < FEW, found["similarity"] >= SIMILAR
    strategies: Mapping[tuple[bool, bool], Strategy] = {
        (True, True): "head",
        (True, False): "head",
        (False, True): "last_blocks",
        (False, False): "all",
    }
    why = (
        f"{'few' if few else 'many'} images, {found['images_per_class']:.0f} a class, and "
        f"{'like' if similar else 'unlike'} those it was trained on: a linear probe on its features is right "
        f"in {found['linear_probe']:.0%}, chance in {found['chance']:.0%}"
    )
    strong = few and not similar
    return Decision(strategies[few, similar], f"{why}{STRONG * strong}", found, strong)
