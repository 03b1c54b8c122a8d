"""What each image contributes to the numbers of classification: whether it is right, its score and loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_EPSILON = float(np.finfo(np.float32).eps)  # What scikit-learn clips float32 probabilities by.
_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "label": pa.string(),
    "predicted": pa.string(),
    "score": pa.float32(),
    "right": pa.bool_(),
    "right_in_5": pa.bool_(),
    "loss": pa.float64(),
}
_TOP = pa.list_(pa.struct([("label", pa.string())]))
SCHEMA = pa.schema(_COLUMNS)
"""A row an image; ``label`` is the truth. What is not known is null, ``predicted`` where the image failed."""


def table(predictions: pa.Table, truth: pa.Table, classes: Sequence[str] | None) -> pa.Table:
    """Return the images by themselves, as `SCHEMA` says."""
    if len(predictions) != len(truth):
        raise ValueError(f"Expected a truth for each prediction; got {len(truth)} for {len(predictions)}.")
    labels, said = (_column(table, "label").cast(pa.string()) for table in (truth, predictions))
    if labels.null_count:
        raise ValueError(f"Expected images with a truth only; {labels.null_count} have none.")
    failed = pc.or_(pc.is_valid(_column(predictions, "error")), pc.is_null(said))
    columns = {
        "key": predictions["key"],
        "label": labels,
        "predicted": _unless(failed, said),
        "score": _unless(failed, _optional(predictions, "score", pa.float32())),
        "right": pc.and_not(pc.fill_null(pc.equal(said, labels), False), failed),
        "right_in_5": _right_in_5(_optional(predictions, "top", _TOP), labels, failed, classes),
        "loss": _losses(_unless(failed, _true_scores(predictions, labels, classes))),
    }
    return pa.table(columns).cast(SCHEMA)


def _right_in_5(top: Any, labels: Any, failed: Any, classes: Sequence[str] | None) -> Any:
    """Return whether the truth is among the best five; null where ``top`` has neither five nor all."""
    best = pc.list_slice(_unless(failed, top), 0, 5)
    image = pc.list_parent_indices(best)
    same = pc.equal(pc.struct_field(pc.list_flatten(best), "label"), labels.take(image))
    hits = np.bincount(image.filter(same).to_numpy(), minlength=len(labels))
    enough = 5 if classes is None else min(5, len(classes))
    known = pc.or_(failed, pc.greater_equal(pc.fill_null(pc.list_value_length(best), 0), pa.scalar(enough)))
    return _unless(pc.invert(known), pa.array(hits > 0))


def _true_scores(predictions: pa.Table, labels: Any, classes: Sequence[str] | None) -> Any:
    """Return each image's probability of its true class, null where it was not written."""
    given = predictions.schema.names
    scores = _optional(predictions, "true_score", pa.float32()).cast(pa.float32())
    if classes is None or "probabilities" not in given:
        return scores
    lists = _column(predictions, "probabilities")
    if pc.any(pc.not_equal(pc.list_value_length(lists), pa.scalar(len(classes)))).as_py():
        raise ValueError(f"Expected {len(classes)} probabilities, one for each of the model's classes.")
    place = numbered(labels.to_pylist(), classes)
    usable = lists.is_valid().to_numpy(zero_copy_only=False)
    start = (np.cumsum(usable) - usable) * len(classes)  # Null lists have no values among the flattened.
    at = pa.array(start + place, mask=~usable | (place == len(classes)))
    return pc.coalesce(scores, pc.list_flatten(lists).take(at))


def _losses(probabilities: Any) -> Any:
    """Return -ln p, null where p is null or NaN."""
    return with_nulls(-np.log(np.clip(floats(probabilities), _EPSILON, 1 - _EPSILON)))


def numbered(labels: Iterable[str | None], names: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each label among ``names``; their number for None."""
    known: dict[str | None, int] = {name: place for place, name in enumerate(names)}
    return np.array([known.get(label, len(names)) for label in labels], np.int64)


def with_nulls(numbers: NDArray[np.float64]) -> pa.Array[Any]:
    """Return numbers as a column, null where they are NaN."""
    return pa.array(numbers, from_pandas=True)


def _unless(mask: Any, column: Any) -> Any:
    """Return ``column`` with null where ``mask`` is true."""
    return pc.if_else(mask, pa.scalar(None, column.type), column)


def floats(column: Any) -> NDArray[np.float64]:
    """Return numbers, NaN where they are null."""
    numbers: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _column(table: pa.Table, name: str) -> Any:
    column: Any = table[name].combine_chunks()
    return column


def _optional(table: pa.Table, name: str, kind: Any) -> Any:
    """Return a column, nulls of this type where it is absent."""
    return _column(table, name) if name in table.schema.names else pa.nulls(len(table), kind)
