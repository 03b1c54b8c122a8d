"""Judges an output by its ground truth, part by part, and writes ``evaluation.json`` and its tables.

It reads Parquet alone: neither a device nor the images are needed, and it may be done again at any time.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.evaluation.ground_truths import REMEMBERED, UNKNOWN, Naming, ground_truth
from cnnbatch.evaluation.judges import judges, metric
from cnnbatch.evaluation.parts import WHOLE, EvaluationOrder, JudgedPart, Slice, judge_part
from cnnbatch.evaluation.slicing import require_few
from cnnbatch.evaluation.truths import Aligned
from cnnbatch.metrics import Evaluated, Merging, Schemas, Value
from cnnbatch.output import integrity
from cnnbatch.output.evaluation import Evaluation, write_evaluation
from cnnbatch.output.folder import PART, Output
from cnnbatch.output.reader import Reader
from cnnbatch.storage import NotFound, Storage
from cnnbatch.truth import answer_of, classes_of, with_new_fields
from cnnbatch.truth.classes import ModelClasses, match_classes, no_known_label
from cnnbatch.types import Map, here

UNUSED = "rows of ground truth whose images the output lacks"

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """By what an output is judged; what is None is as in its job.

    ``slices`` are columns of the output, by whose values every number is given, too; ``aliases`` the
    model's names of the truth's classes; ``only`` says of each part which of its rows count.
    """

    slices: Sequence[str] | None = None
    aliases: Mapping[str, str | None] | None = None
    truth: Aligned | None = None
    only: Mapping[int, NDArray[np.bool_]] | None = None


def evaluate(
    uri: str,
    storage: Storage,
    terms: Terms = Terms(),
    apply: Map = here,
    advance: Advance = lambda images: None,
) -> Evaluation | None:
    """Judge the output at ``uri`` and write what comes of it there; None where it has no truth.

    ``apply`` judges parts and ranks classes, perhaps side by side; ``advance`` gets how many images were
    done. Raises UserError where the truth has a class that the model does not know, or for a column that is
    not there.
    """
    with tempfile.TemporaryDirectory(prefix="cnnbatch-") as folder:
        evaluation = judge(uri, storage, Path(folder), terms, apply, advance)
        if evaluation is None:
            return None
        write_evaluation(uri, storage, evaluation, Path(folder))
    return evaluation


def judge(
    uri: str, storage: Storage, folder: Path, terms: Terms, apply: Map, advance: Advance
) -> Evaluation | None:
    """Return what `evaluate` does, and write the tables into the local ``folder`` alone."""
    output = Output(uri, storage)
    order = _order(output, Reader(uri, storage), terms)
    if order is None:
        return None
    merged = _Merged(order, folder / "images.parquet")
    for judged in apply(partial(judge_part, order), sorted(output.finished())):
        merged.add(judged)
        advance(judged.images)
    if terms.only is None:
        merged.require_known_label()
    found = merged.close(apply)
    for name, table in found.tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return Evaluation(
        task=order.task,
        images=merged.images,
        failed=merged.failed,
        truth=order.truth,
        aliases=order.naming.aliases,
        metrics=found.metrics,
        slices=merged.slices(apply),
        notes=_notes(merged, terms.truth),
    )


def _notes(merged: _Merged, truth: Aligned | None) -> dict[str, int]:
    unused = {UNUSED: truth.unused} if truth and truth.unused else {}
    return {**dict(sorted(merged.notes.items())), **unused}


def _order(output: Output, result: Reader, terms: Terms) -> EvaluationOrder | None:
    """Return what is to be done, None where there is nothing to judge by."""
    settings = result.settings
    folder = terms.truth.folder if terms.truth else output.path("_job", "truth")
    parts = _truth_parts(output, folder)
    if not parts:
        return None
    with output.storage.open(parts[0]) as file, integrity.reading(parts[0]):
        schema = with_new_fields(pq.read_schema(file).empty_table()).schema
        known, answer = classes_of(schema), answer_of(schema)
    difficult = _difficult(output, parts, answer)
    metrics = tuple(judges(Schemas(_predicted(result.schema, settings), schema, difficult)))
    if not metrics:
        return None
    columns = settings.get("evaluate", {}).get("slices", ()) if terms.slices is None else terms.slices
    result.names(columns)  # Raises for one that is not there.
    task = settings.get("task") or {}
    classes = _model_classes(output)
    aliases = task.get("aliases", {}) if terms.aliases is None else terms.aliases
    return EvaluationOrder(
        uri=output.uri,
        options=output.storage.options,
        truth=folder,
        schema=schema,
        task=str(task.get("name", "")),
        metrics=metrics,
        slices=tuple(columns),
        naming=Naming(
            classes, aliases, match_classes(classes, known, aliases, ()) if known and classes else {}
        ),
        only=terms.only,
    )


def _predicted(schema: pa.Schema, settings: Mapping[str, Any]) -> pa.Schema:
    """Return the columns of an output but for those that were kept from its input, whatever their names."""
    kept = (settings.get("input") or {}).get("keep") or ()
    return pa.schema([field for field in schema if field.name not in kept])


def _truth_parts(output: Output, folder: str) -> list[str]:
    """Return the addresses of the truth's parts, in order; none where there is no truth."""
    try:
        return sorted(entry.uri for entry in output.storage.list(folder) if PART.search(entry.uri))
    except NotFound:
        return []


def _difficult(output: Output, parts: Sequence[str], answer: str) -> bool:
    """Say whether the truth marks difficult objects, as the first part that shows it does."""
    kind = ground_truth(answer)
    for part in parts:
        with output.storage.open(part) as file, integrity.reading(part):
            found = kind.difficult(pq.read_table(file, columns=[answer]))
        if found is not None:
            return found
    return False


def _model_classes(output: Output) -> ModelClasses | None:
    kept = output.decided("classes")
    return ModelClasses(**kept) if kept else None


class _Merged:
    """What all parts have contributed so far; the rows of the images lie on disk."""

    def __init__(self, order: EvaluationOrder, path: Path) -> None:
        self.images = self.failed = 0
        self.notes = Counter[str]()
        self.unknown: dict[str, None] = {}
        self._order, self._path = order, path
        self._partials: dict[Slice, dict[str, Merging]] = {}
        self._values: dict[str, set[str]] = defaultdict(set)
        self._writer: pq.ParquetWriter | None = None

    def add(self, judged: JudgedPart) -> None:
        """Take one part in."""
        self.images += judged.images
        self.failed += judged.failed
        if judged.unknown and len(self.unknown) < REMEMBERED:
            self.unknown |= dict.fromkeys(judged.unknown)
        self.notes += judged.notes
        for slice_, partials in judged.partials.items():
            self._check(slice_)
            merged = self._partials.setdefault(slice_, {name: metric(name).merging() for name in partials})
            for name, found in partials.items():
                merged[name].add(found)
        self._writer = self._writer or pq.ParquetWriter(self._path, judged.rows.schema)
        self._writer.write_table(judged.rows)

    def require_known_label(self) -> None:
        """Insist on an image whose label the model can give; raises UserError."""
        classes = self._order.naming.classes
        if classes is not None and self.unknown and self.notes[UNKNOWN] == self.images:
            raise no_known_label(classes, list(self.unknown))

    def close(self, apply: Map) -> Evaluated:
        """Return the numbers and the tables of all images."""
        if self._writer is not None:
            self._writer.close()
        return self._result(WHOLE, apply)

    def slices(self, apply: Map) -> dict[str, dict[str, Mapping[str, Value]]]:
        """Return the numbers by column and value."""
        found: dict[str, dict[str, Mapping[str, Value]]] = {name: {} for name in self._order.slices}
        for slice_ in self._partials:
            if slice_ is not None:
                found[slice_[0]][slice_[1]] = self._result(slice_, apply).metrics
        return found

    def _result(self, slice_: Slice, apply: Map) -> Evaluated:
        metrics: dict[str, Value] = {}
        tables: dict[str, pa.Table] = {}
        for name, merging in self._partials.get(slice_, {}).items():
            found = metric(name).result(merging.merged(), apply)
            metrics, tables = {**metrics, **found.metrics}, {**tables, **found.tables}
        return Evaluated(metrics, tables)

    def _check(self, slice_: Slice) -> None:
        if slice_ is None:
            return
        self._values[slice_[0]].add(slice_[1])
        require_few(slice_[0], len(self._values[slice_[0]]))
