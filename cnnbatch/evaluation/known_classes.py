"""Whether a model can be judged by the job's ground truth: asked before the first shard is predicted.

An object of a class that the model does not know stops the job. Labels stop it where none is known: single
ones are mistakes, which the evaluation counts. So of labels the plan is read up to the first known one, and
of objects as far as the first shard does not have to wait for long; later shards are checked one by one, by
the workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from cnnbatch.evaluation.judges import Columns, judges
from cnnbatch.job import MapJob
from cnnbatch.sources.objects import TRUTH
from cnnbatch.truth import Class, ModelClasses, classes_of, match_classes, no_known_label, object_labels
from cnnbatch.types import Shard, Source

LISTED = 10_000
"""Images whose objects are looked at before the first shard, where the listing has them."""
READ = 2_000
"""The same where each image's objects are in a file of their own."""
_SHOWN = 1000  # labels that are remembered for a message

Shards = Callable[[], Iterable[Shard | None]]


class KnownClasses:
    """Compares a model's classes with those of the ground truth, once for a run.

    ``shards`` streams the images to predict, None where the listing has to be waited for.
    """

    def __init__(self, job: MapJob, source: Source, shards: Shards) -> None:
        self._job, self._source, self._shards = job, source, shards
        self._asked = False

    def require_early(self, kept: Mapping[str, Any] | None = None) -> None:
        """Insist on them before anything is loaded, where the job tells the model's classes.

        ``kept`` are those with which the output was begun.
        """
        names = self._job.task.class_names() if kept is None and self._column() else None
        if names is not None:
            self._require(ModelClasses(names))
        elif kept is not None:
            self.require(kept)

    def require(self, classes: Mapping[str, Any] | None) -> None:
        """Insist on them, by the ``classes`` that a loaded model has; raises UserError.

        A model without classes, and one whose rows have no answer of the ground truth's kind, pass.
        """
        if not self._asked and classes is not None and self._column():
            self._require(ModelClasses(**classes))
        self._asked = True

    def _column(self) -> str | None:
        """Return ``objects`` or ``label``, which both ground truth and predictions have; None for neither."""
        return judged_column(self._source.truth_schema, self._job.task.columns())

    def _require(self, model: ModelClasses) -> None:
        if self._column() == "objects":
            self._require_all(model)
        else:
            self._require_one(model)

    def _require_all(self, model: ModelClasses) -> None:
        schema = self._source.truth_schema
        declared = () if schema is None else classes_of(schema)
        require_occurring(model, declared, self._objects(), aliases_of(self._job))

    def _require_one(self, model: ModelClasses) -> None:
        known, strange = model.by_name(), dict[str, None]()
        for shard in filter(None, self._shards()):
            table = self._source.truth(shard)
            labels: list[Any] = [] if table is None else table["label"].unique().drop_null().to_pylist()
            if not known.keys().isdisjoint(labels):
                return
            if len(strange) < _SHOWN:
                strange |= dict.fromkeys(labels)
        if strange:
            raise no_known_label(model, list(strange))

    def _objects(self) -> set[str]:
        """Return the classes of the first images' objects; of all, where the source tells them."""
        chosen = self._job.input
        if chosen.limit is None and chosen.sample == 1 and (told := getattr(self._source, "occurring", None)):
            return set(told)
        in_ref = TRUTH in self._source.columns.names
        found, images, most = set[str](), 0, LISTED if in_ref else READ
        for shard in filter(None, self._shards()):
            found.update(_in_refs(shard) if in_ref else self._in_files(shard))
            images += len(shard.refs)
            if images >= most:
                break
        return found

    def _in_files(self, shard: Shard) -> Iterable[str]:
        table = self._source.truth(shard)
        return () if table is None else object_labels(table)


def judged_column(truth: pa.Schema | None, predictions: pa.Schema) -> str | None:
    """Return the column of the ground truth that predictions are judged by; None where they can't be."""
    if truth is None or not any(judges(Columns(predictions, truth, difficult=False))):
        return None
    return "objects" if "objects" in truth.names else "label"


def aliases_of(job: MapJob) -> Mapping[str, str | None]:
    """Return what the job calls the classes of its ground truth."""
    found: Mapping[str, str | None] = getattr(job.task, "aliases", {})
    return found


def require_occurring(
    model: ModelClasses,
    declared: Iterable[Class],
    labels: Iterable[str],
    aliases: Mapping[str, str | None],
) -> None:
    """Insist that the model knows the class of every object; raises UserError.

    ``declared`` are the classes with ids that the ground truth lists, ``labels`` those that its objects have.
    """
    occurring = set(labels)
    listed = {one.name: one for one in declared}
    others = [Class(name, name) for name in sorted(occurring - listed.keys())]
    match_classes(model, [*listed.values(), *others], aliases, occurring)


def _in_refs(shard: Shard) -> Iterator[str]:
    for ref in shard.refs:
        for one in json.loads(ref.columns[TRUTH] or "{}").get("objects") or ():
            yield one["label"]
