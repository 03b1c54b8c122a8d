"""What one worker does with one part: predictions judged by their ground truth, whole and slice by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.evaluation.ground_truths import Naming, ground_truth
from cnnbatch.evaluation.judges import metric
from cnnbatch.evaluation.slicing import by_value, texts
from cnnbatch.metrics import Metric, Piece
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten_rows import are_forgotten
from cnnbatch.storage import NotFound, Storage, StorageOptions, join
from cnnbatch.truth import answer_of, with_new_fields
from cnnbatch.truth.problems import has_other_size, left_out_of

Slice = tuple[str, str] | None
"""A column and one of its values; None stands for all images."""

WHOLE: Slice = None

NO_TRUTH = "images without ground truth"
OTHER_SIZE = "images whose ground truth is for another size"
UNUSABLE = "images whose ground truth can't be used"


@dataclass(frozen=True, slots=True)
class EvaluationOrder:
    """What all parts of one evaluation share; it travels to the workers.

    ``truth`` is the folder of the truth's parts, ``schema`` theirs; ``task`` and ``metrics`` are names.
    ``only`` says of each part which of its rows count; None: all.
    """

    uri: str
    options: StorageOptions
    truth: str
    schema: pa.Schema
    task: str
    metrics: tuple[str, ...]
    slices: tuple[str, ...]
    naming: Naming
    only: Mapping[int, NDArray[np.bool_]] | None


@dataclass(frozen=True, slots=True)
class JudgedPart:
    """One part's contribution: a partial for each slice and metric, and a row an image.

    ``unknown`` are labels of its ground truth that the model does not know.
    """

    part: int
    images: int
    failed: int
    notes: Counter[str]
    partials: Mapping[Slice, Mapping[str, Any]]
    rows: pa.Table
    unknown: Sequence[str] = ()


def judge_part(order: EvaluationOrder, part: int) -> JudgedPart:
    """Judge the images of one part that have a truth.

    Raises UserError where the truth has a class that the model has to know and does not.
    """
    output = Output(order.uri, Storage(order.options))
    metrics = {name: metric(name) for name in order.metrics}
    answer, classes = answer_of(order.schema), order.naming.classes
    kind = ground_truth(answer)
    predictions, truth = _read(output, order, part, list(metrics.values()))
    counted = ~are_forgotten(predictions["error"])
    wanted = np.flatnonzero(counted if order.only is None else counted & order.only[part])
    truth, notes = kind.named(truth.take(wanted), order.naming)
    known = truth[answer].is_valid().to_numpy()
    notes += _without_truth(truth.filter(pa.array(~known)))
    rows = wanted[known]
    predictions, truth = predictions.take(rows), truth.filter(pa.array(known))
    notes += _left_out(truth) + kind.oddities(predictions, truth, classes)
    partials = _partials(part, order, metrics, predictions, truth, output.asset)
    for name, found in partials[WHOLE].items():
        notes.update(metrics[name].notes(found))
    return JudgedPart(
        part=part,
        images=predictions.num_rows,
        failed=predictions.num_rows - predictions["error"].null_count,
        notes=notes,
        partials=partials,
        rows=_rows(part, rows, metrics, partials[WHOLE]),
        unknown=kind.unknown(truth, classes),
    )


def _read(
    output: Output, order: EvaluationOrder, part: int, metrics: Sequence[Metric]
) -> tuple[pa.Table, pa.Table]:
    """Return the part's predictions and its truth, row by row; null where the part has no truth."""
    with output.storage.open(output.part(part)) as file:
        schema = pq.read_schema(file)
        wanted = dict.fromkeys(
            [
                "key",
                "error",
                "width",
                "height",
                *(name for one in metrics for name in one.columns(schema)),
                *order.slices,
            ]
        )
        predictions = pq.read_table(file, columns=[name for name in wanted if name in schema.names])
    try:
        return predictions, _read_truth(output, order, part, predictions.num_rows)
    except NotFound:
        none: list[Any] = [pa.nulls(predictions.num_rows, one.type) for one in order.schema]
        return predictions, pa.table(none, schema=order.schema)


def _read_truth(output: Output, order: EvaluationOrder, part: int, rows: int) -> pa.Table:
    uri = join(order.truth, f"part-{part:08}.parquet")
    with output.storage.open(uri) as file, integrity.reading(uri):
        truth = with_new_fields(pq.read_table(file))
        integrity.require_columns(truth.schema, order.schema)
        if truth.num_rows != rows:
            raise ValueError(f"expected {rows:,} rows, as its part has, got {truth.num_rows:,}")
        return truth


def _without_truth(truth: pa.Table) -> Counter[str]:
    """Count images that can't be judged, by what their rows of the truth say."""
    problems = truth["problem"].to_pylist() if "problem" in truth.schema.names else [None] * truth.num_rows
    return Counter(
        NO_TRUTH if one is None else OTHER_SIZE if has_other_size(one) else UNUSABLE for one in problems
    )


def _left_out(truth: pa.Table) -> Counter[str]:
    """Count what is left out of truths that are judged all the same."""
    counts = Counter[str]()
    problems: list[Any] = truth["problem"].drop_null().to_pylist() if "problem" in truth.schema.names else []
    for problem in problems:
        counts.update(dict([left_out_of(problem)]))
    return counts


def _partials(
    part: int,
    order: EvaluationOrder,
    metrics: Mapping[str, Metric],
    predictions: pa.Table,
    truth: pa.Table,
    asset: Callable[[str], bytes],
) -> dict[Slice, dict[str, Any]]:
    """Return the partials of the whole part, then of each value of each sliced column."""
    first_place = part << 32  # Above those of all earlier parts.
    classes = order.naming.classes
    names = tuple(classes.names) if classes else None
    piece = Piece(predictions, truth, first_place, names, asset, classes.maps if classes else 0)
    slices = dict(_slices(order.slices, predictions))
    found: dict[Slice, dict[str, Any]] = {slice_: {} for slice_ in (WHOLE, *slices)}
    for name, one in metrics.items():
        for slice_, partial in zip(found, one.partials(piece, list(slices.values())), strict=True):
            found[slice_][name] = partial
    return found


def _slices(columns: Sequence[str], predictions: pa.Table) -> Iterator[tuple[Slice, NDArray[np.int64]]]:
    """Yield each value of each column with the rows that have it; null is a value, too."""
    for column in columns:
        for value, rows in by_value(texts(predictions[column], column)):
            yield (column, value), rows


def _rows(part: int, rows: Any, metrics: Mapping[str, Metric], partials: Mapping[str, Any]) -> pa.Table:
    """Return a row an image: where it is, and what each metric says of it."""
    columns: dict[str, Any] = {}
    for name, one in metrics.items():
        table = one.images(partials[name])
        columns |= {} if table is None else {name: table[name] for name in table.schema.names}
    where = {"part": pa.array(np.full(len(rows), part)), "row": pa.array(rows)}
    return pa.table({**columns, **where})
