"""What a report shows with the predictions: the evaluation with its tables, and the ground truth, row by row.

A report is made of whatever there is: a file that is missing, damaged or of another version counts as
none, and only for ``evaluation.json`` the page says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.output.evaluation import Evaluation, read_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.reader import Reader, rows_at
from cnnbatch.report.answers import answer_report, answers_among
from cnnbatch.report.answers.entry import AboutOutput, AboutTruth, AnswerReport
from cnnbatch.report.prediction import Truth
from cnnbatch.report.tally import RankedRow
from cnnbatch.storage import NotFound, Storage, Unreadable, join
from cnnbatch.truth import classes_of
from cnnbatch.truth.classes import ModelClasses, match_classes

ROWS_IN_A_BATCH = 4096
T = TypeVar("T")
_NOT_THERE = (NotFound, Unreadable, pa.ArrowException, OSError)


class ReportContext:
    """What a report on ``result`` is made of, but the predictions themselves."""

    def __init__(self, result: Reader, storage: Storage) -> None:
        self.shards = [footer.receipt.shard for footer in result.receipts()]
        self.problem = ""
        self.about = about_output(result, storage)
        self._output = Output(result.uri, storage)
        self._settings = result.settings
        self._schema = result.schema if self.shards else pa.schema([])

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """What ``evaluation.json`` says; None where there is none, or none that can be read."""
        try:
            return read_evaluation(self._output.uri, self._output.storage)
        except UserError:
            self.problem = "evaluation.json is of another version, or damaged."
            return None

    @cached_property
    def truth_kind(self) -> str | None:
        """The kind of answer of the ground truth, as its first part shows; None where there is none."""
        kinds = [self._read(self._truth(shard), _kind_of) for shard in self.shards[:1]]
        return next(iter(kinds), None)

    @cached_property
    def answers(self) -> dict[str, AnswerReport]:
        """The entries of the kinds of answer that predictions or ground truth have."""
        return answers_among([*self._schema.names, *filter(None, [self.truth_kind])])

    def table(self, name: str, columns: Sequence[str]) -> pa.Table | None:
        """Return these columns of a table of the evaluation; None where it does not have them."""
        wanted = list(columns)
        return self._read(
            self._evaluated(name), lambda file: file.read(columns=wanted) if _has(file, wanted) else None
        )

    def metrics(self) -> pa.Table | None:
        """Return what a training has measured, ``metrics.parquet``."""
        return self._read(self._output.path("metrics.parquet"), lambda file: file.read())

    def images(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the evaluation's rows of all images, some at a time; none where it lacks these columns."""
        try:
            with self._output.storage.open(self._evaluated("images")) as opened:
                file = pq.ParquetFile(opened)
                if _has(file, columns):
                    yield from file.iter_batches(ROWS_IN_A_BATCH, columns=list(columns))
        except _NOT_THERE:
            return

    def truths(self, places: Sequence[RankedRow]) -> list[Truth | None]:
        """Return the truth of the images at ``places``, in order, with the model's names of the classes.

        It has only such fields as predictions have, too: like is compared with like.
        """
        found: dict[RankedRow, Truth | None] = {}
        for part in sorted({place.part for place in places}):
            here = [place for place in places if place.part == part]
            found |= zip(here, self._part(self.shards[part], [place.row for place in here]), strict=True)
        return [found[place] for place in places]

    def _part(self, shard: int, rows: Sequence[int]) -> list[Truth | None]:
        def read(file: pq.ParquetFile) -> list[Truth | None]:
            schema, kind = file.schema_arrow, _kind_of(file)
            about = AboutTruth(schema, self._names(schema), self.about.classes, self._hidden(kind))
            found = rows_at(file, rows)
            others = {name: one for name, one in self.answers.items() if name != kind}
            return [_truth(found.get(row, {}), kind, about, others) for row in rows]

        return self._read(self._truth(shard), read) or [None] * len(rows)

    def _read(self, uri: str, read: Callable[[pq.ParquetFile], T]) -> T | None:
        try:
            with self._output.storage.open(uri) as file:
                return read(pq.ParquetFile(file))
        except _NOT_THERE:
            return None

    def _truth(self, shard: int) -> str:
        folder = self.evaluation.truth if self.evaluation else self._output.path("_job", "truth")
        return join(folder, f"part-{shard:08}.parquet")

    @cached_property
    def _classes(self) -> ModelClasses | None:
        kept = self._output.decided("classes")
        return ModelClasses(**kept) if kept else None

    def _names(self, schema: pa.Schema) -> Mapping[str, str | None]:
        """Return the model's names of the truth's classes, where only the job has them."""
        known, task = classes_of(schema), self._settings.get("task")
        aliases = task.get("aliases") if isinstance(task, dict) else None
        return match_classes(self._classes, known, aliases or {}, ()) if self._classes else {}

    def _hidden(self, kind: str | None) -> AbstractSet[str]:
        entry, schema = answer_report(kind), self._schema
        known = schema.field(kind).type if kind in schema.names else None
        return frozenset() if entry is None else entry.hidden_fields(known)

    def _evaluated(self, name: str) -> str:
        return self._output.path("evaluation", f"{name}.parquet")


def about_output(result: Reader, storage: Storage) -> AboutOutput:
    """Return what the answers of an output are shown with."""
    output = Output(result.uri, storage)
    kept = output.decided("classes")
    return AboutOutput(tuple(kept["names"]) if kept else (), output.asset)


def _has(file: pq.ParquetFile, columns: Sequence[str]) -> bool:
    return set(columns) <= set(file.schema_arrow.names)


def _kind_of(file: pq.ParquetFile) -> str | None:
    """Return the kind of answer of a ground truth; None where it has none that a report can show."""
    return next(iter(answers_among(file.schema_arrow.names)), None)


def _truth(
    row: Mapping[str, Any], kind: str | None, about: AboutTruth, others: Mapping[str, AnswerReport]
) -> Truth | None:
    """Return what a row of the ground truth says; None where the image has none."""
    entry = answer_report(kind)
    if kind is None or entry is None or row.get(kind) is None:
        return None
    of_objects = others if kind == "objects" else {}
    more = {name: one.truth_of_objects(row, about) for name, one in of_objects.items()}
    return Truth(
        kind, entry.truth(row[kind], about), {name: one for name, one in more.items() if one is not None}
    )
