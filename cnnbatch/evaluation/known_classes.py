"""Whether a model can be judged by the job's ground truth: asked before the first shard is predicted.

An object of a class that the model does not know stops the job. Labels stop it where none is known: single
ones are mistakes, which the evaluation counts. So of labels the plan is read up to the first known one, and
of objects as far as the first shard does not have to wait for long; later shards are checked one by one, by
the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from cnnbatch.evaluation.ground_truths import Aliases, GroundTruth, PlannedImages, ground_truth
from cnnbatch.evaluation.judges import judges
from cnnbatch.job import MapJob
from cnnbatch.metrics import Schemas
from cnnbatch.truth import answer_of
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Shard, Source

Shards = Callable[[], Iterable[Shard | None]]


class KnownClasses:
    """Compares a model's classes with those of the ground truth, once for a run.

    ``shards`` streams the images to predict, None where the listing has to be waited for.
    """

    def __init__(self, job: MapJob, source: Source, shards: Shards) -> None:
        whole = job.input.limit is None and job.input.sample == 1
        self._planned = PlannedImages(source, shards, whole, aliases_of(job))
        self._task = job.task
        self._asked = False

    def require_early(self, kept: Mapping[str, Any] | None = None) -> None:
        """Insist on them before anything is loaded, where the job names the model's classes.

        ``kept`` are those with which the output was begun.
        """
        judged = self._judged_by()
        names = self._task.class_names() if kept is None and judged else None
        if judged and names is not None:
            judged.require_early(ModelClasses(names), self._planned)
        elif kept is not None:
            self.require(kept)

    def require(self, classes: Mapping[str, Any] | None) -> None:
        """Insist on them, by the ``classes`` that a loaded model has; raises UserError.

        A model without classes, and one whose rows have no answer of the ground truth's kind, pass.
        """
        if not self._asked and classes is not None and (judged := self._judged_by()):
            judged.require_early(ModelClasses(**classes), self._planned)
        self._asked = True

    def _judged_by(self) -> GroundTruth | None:
        return judged_by(self._planned.source.truth_schema, self._task.columns())


def judged_by(truth: pa.Schema | None, predictions: pa.Schema) -> GroundTruth | None:
    """Return the ground truth that predictions with these columns are judged by; None where they can't be."""
    if truth is None or not judges(Schemas(predictions, truth)):
        return None
    return ground_truth(answer_of(truth))


def aliases_of(job: MapJob) -> Aliases:
    """Return what the job calls the classes of its ground truth."""
    found: Aliases = getattr(job.task, "aliases", {})
    return found
