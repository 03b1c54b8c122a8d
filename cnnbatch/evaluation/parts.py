"""What one worker does with one part: predictions beside their truth, judged whole and slice by slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.evaluation.judges import JUDGES, Judge, Piece
from cnnbatch.evaluation.notes import oddities, unknown_labels, without_truth
from cnnbatch.output import integrity
from cnnbatch.output.folder import Output
from cnnbatch.storage import NotFound, Storage, StorageOptions, join
from cnnbatch.truth import Class, ModelClasses, match_classes, object_labels, renamed

Slice = tuple[str, str] | None
"""A column and one of its values; None stands for all images."""

WHOLE: Slice = None


@dataclass(frozen=True, slots=True)
class Order:
    """What all parts of one evaluation share; it travels to the workers.

    ``truth`` is the folder of the truth's parts, ``schema`` theirs, ``task`` the job's. ``names`` lead from
    the truth's classes to the model's, where they are known beforehand; else each part matches its own by
    ``classes`` and ``aliases``. ``only`` tells of each part which of its rows count; None: all.
    """

    uri: str
    options: StorageOptions
    truth: str
    schema: pa.Schema
    task: str
    judges: tuple[str, ...]
    slices: tuple[str, ...]
    names: Mapping[str, str | None]
    classes: ModelClasses | None
    aliases: Mapping[str, str | None]
    only: Mapping[int, NDArray[np.bool_]] | None


@dataclass(frozen=True, slots=True)
class Judged:
    """One part's contribution: a partial for each slice and judge, and a row an image.

    ``strange`` are labels of its ground truth that the model does not know.
    """

    part: int
    images: int
    failed: int
    notes: Counter[str]
    partials: Mapping[Slice, Mapping[str, Any]]
    rows: pa.Table
    strange: Sequence[str] = ()


def judge_part(order: Order, part: int) -> Judged:
    """Judge the images of one part that have a truth.

    Raises UserError where the truth has a class that the model does not know.
    """
    output = Output(order.uri, Storage(order.options))
    chosen = [JUDGES[name] for name in order.judges]
    predictions, truth = _read(output, order, part, chosen)
    truth = _with_aliases(truth, order.aliases)
    known = truth[_truth_column(truth)].is_valid().to_numpy()
    wanted = np.ones(len(known), np.bool_) if order.only is None else order.only[part]
    rows = np.flatnonzero(known & wanted)
    notes = without_truth(truth.filter(pa.array(wanted & ~known)))
    predictions, truth = predictions.take(rows), _named(truth.take(rows), order, notes)
    notes += oddities(predictions, truth, order.classes)
    partials = dict(_partials(part, order, chosen, predictions, truth))
    for name, found in partials[WHOLE].items():
        notes.update(JUDGES[name].notes(found))
    return Judged(
        part=part,
        images=predictions.num_rows,
        failed=predictions.num_rows - predictions["error"].null_count,
        notes=notes,
        partials=partials,
        rows=_rows(part, rows, chosen, partials[WHOLE]),
        strange=unknown_labels(truth, order.classes),
    )


def _read(output: Output, order: Order, part: int, chosen: Sequence[Judge]) -> tuple[pa.Table, pa.Table]:
    """Return the part's predictions and its truth, row beside row; null where the part has no truth."""
    with output.storage.open(output.part(part)) as file:
        schema = pq.read_schema(file)
        wanted = dict.fromkeys(
            [
                "key",
                "error",
                "width",
                "height",
                *(name for one in chosen for name in one.columns(schema)),
                *order.slices,
            ]
        )
        predictions = pq.read_table(file, columns=[name for name in wanted if name in schema.names])
    try:
        return predictions, _read_truth(output, order, part, predictions.num_rows)
    except NotFound:
        none: list[Any] = [pa.nulls(predictions.num_rows, one.type) for one in order.schema]
        return predictions, pa.table(none, schema=order.schema)


def _read_truth(output: Output, order: Order, part: int, rows: int) -> pa.Table:
    uri = join(order.truth, f"part-{part:08}.parquet")
    with output.storage.open(uri) as file, integrity.reading(uri):
        truth = pq.read_table(file)
        integrity.require_columns(truth.schema, order.schema)
        if truth.num_rows != rows:
            raise ValueError(f"expected {rows:,} rows, as its part has, got {truth.num_rows:,}")
        return truth


def _truth_column(truth: pa.Table) -> str:
    return "objects" if "objects" in truth.schema.names else "label"


def _with_aliases(truth: pa.Table, aliases: Mapping[str, str | None]) -> pa.Table:
    """Return labels by the names that the job gives them; those that it leaves out are null."""
    if not aliases or "objects" in truth.schema.names:
        return truth
    coded: Any = truth["label"].combine_chunks().dictionary_encode()
    names = [aliases.get(label, label) for label in coded.dictionary.to_pylist()]
    labels: Any = pa.array(names, pa.string()).take(coded.indices)
    return truth.set_column(truth.schema.get_field_index("label"), "label", labels)


def _named(truth: pa.Table, order: Order, notes: Counter[str]) -> pa.Table:
    """Return the truth with the model's names; objects of classes that the job leaves out are counted."""
    if "objects" not in truth.schema.names:
        return truth
    names = dict(order.names)
    labels = [label for label in object_labels(truth) if label not in names]
    if labels and order.classes:
        names |= match_classes(order.classes, [Class(label, label) for label in labels], order.aliases)
    column: Any = truth["objects"].combine_chunks()
    objects, left_out = renamed(column, names)
    for label, count in left_out.items():
        notes[f"truths of the class {label}, which task.aliases leaves out"] += count
    return truth.set_column(truth.schema.get_field_index("objects"), "objects", objects)


def _partials(
    part: int, order: Order, chosen: Sequence[Judge], predictions: pa.Table, truth: pa.Table
) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """Yield the partials of the whole part, then of each value of each sliced column."""
    first_place = part << 32  # Above those of all earlier parts.
    for slice_, rows in [(WHOLE, None), *_slices(order.slices, predictions)]:
        some = (predictions, truth) if rows is None else (predictions.take(rows), truth.take(rows))
        piece = Piece(*some, first_place, tuple(order.classes.names) if order.classes else None)
        yield slice_, {judge.name: judge.partial(piece) for judge in chosen}


def _slices(columns: Sequence[str], predictions: pa.Table) -> Iterator[tuple[Slice, Any]]:
    """Yield each value of each column with the rows that have it; null is a value, too."""
    for column in columns:
        texts: Any = predictions[column].cast(pa.string())
        values: list[Any] = pc.fill_null(texts, "null").to_pylist()
        array = np.array(values, dtype=object)
        for value in sorted(set(values)):
            yield (column, value), np.flatnonzero(array == value)


def _rows(part: int, rows: Any, chosen: Sequence[Judge], partials: Mapping[str, Any]) -> pa.Table:
    """Return a row an image: where it is, and what each judge says of it."""
    columns: dict[str, Any] = {}
    for judge in chosen:
        table = judge.images(partials[judge.name])
        columns |= {} if table is None else {name: table[name] for name in table.schema.names}
    where = {"part": pa.array(np.full(len(rows), part)), "row": pa.array(rows)}
    return pa.table({**columns, **where})
