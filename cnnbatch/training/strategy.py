"""Decides how much of a network to tune: what the job says, else by its features of the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.config.train import Strategy
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, TrainJob
from cnnbatch.output import reader
from cnnbatch.output.folder import Output
from cnnbatch.tasks import Task
from cnnbatch.tasks.recipes.recipe import TrainingData
from cnnbatch.training import probes
from cnnbatch.training.data.dataset import Collected
from cnnbatch.training.data.splits import Parts
from cnnbatch.training.messages import Decision
from cnnbatch.training.strategy_rule import FEW, Depth, Features, by_table, figures

if TYPE_CHECKING:
    from cnnbatch.models.depth import Tap

DEPTHS = 12
"""The most blocks whose features are compared."""
MOST_IMAGES = 2000
"""The most training images whose features are compared."""
LEAST_STEPS = 150
"""Steps that a training takes at least: of a few images an epoch is one or two."""
LESSON_EPOCHS = 5
EPOCHS: Mapping[Strategy, tuple[int, int]] = {
    "as_is": (0, 0),
    "head": (20, 10),
    "last_blocks": (15, 8),
    "most_blocks": (15, 8),
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
    epochs = small if data.images / max(1, len(data.classes)) < FEW else large
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
    if (features := job.task.with_features(DEPTHS)) is None:
        return Decision("all", "the task has no features by which to choose")
    note("looking at the network's features of the training images, to choose how much of it to tune")
    found = _measured(job, *features, parts, collected, output)
    output.decide("training/strategy", asdict(found))
    return found


def _measured(
    job: TrainJob, task: Task, taps: Sequence[Tap], parts: Parts, collected: Collected, output: Output
) -> Decision:
    """Predict some training images as they are, with their features, by a job of its own in the output."""
    where, data = output.path("_job", "training", "features"), collected.data
    share = min(1.0, parts.train.sample * min(1.0, MOST_IMAGES / collected.listed))
    predicting = MapJob(
        task=task,
        input=parts.train.model_copy(update={"sample": share}),
        compute=job.compute,
        output=job.output.model_copy(update={"url": where}),
        max_failed=1.0,
    )
    run(predicting, RunOptions(quiet=True, only_rows=True))
    known = (Output(where, output.storage).decided("classes") or {}).get("names", ())
    rows = reader.open_output(where, output.storage).arrow(["key", "embedding", "error"])
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


def _depths(taps: Sequence[Tap], features: Features, classes: probes.Classes) -> Iterator[Depth]:
    """Yield what the features of each block tell, of ``features`` [N, D] of all of them."""
    ends = np.cumsum([one.width for one in taps])
    for one, end in zip(taps, ends, strict=True):
        scaled = probes.standardized(features[:, end - one.width : end])
        yield Depth(one.block, probes.linear_probe(scaled, classes), probes.log_evidence(scaled, classes))


def _labels(output: Output) -> dict[str, str]:
    """Return the class of each image that an output has, from the truth beside its parts."""
    found: dict[str, str] = {}
    for index in output.finished():
        with output.storage.open(output.truth(index)) as file:
            rows: Any = pq.read_table(file, columns=["image_id", "label"])
        found |= zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return found
