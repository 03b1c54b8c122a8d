"""Predictions as one table of text: a row an object, or a row an image where it has one label.

RFC 4180, UTF-8. A text from outside that a spreadsheet would take for a formula has an apostrophe before
it, and so has one that begins with an apostrophe: whoever takes one away has what it was.
https://owasp.org/www-community/attacks/CSV_Injection. Lists of numbers, such as embeddings, are left out.
"""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import file_at, require_free, spool
from cnnbatch.output.export.predictions import Found, Predictions
from cnnbatch.storage import Storage
from cnnbatch.truth import MAP, MAP_RUNS
from cnnbatch.types import FORGOTTEN

_FORMULA = tuple("=+-@＝＋－＠\t\r\n'")
_ERROR = ("error", "error_stage", "error_message")
_OBJECT = ("object", "label", "score", "x1", "y1", "x2", "y2")


class CsvTable(ExportFormat):
    """One table of text; what is neither an object nor a vector is a plain column."""

    kinds = ("objects", "boxes", "label")
    any_column = True
    stuff = True
    failed = gone = "their rows say so"

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write the table to the file ``to``, or to ``predictions.csv`` in the folder ``to``.

        An image without objects has one row without object; one that failed has a row with its error.
        """
        target = file_at(to, ".csv", "predictions.csv")
        require_free(storage, *{to, target})
        with spool() as folder:
            with (folder / "rows").open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                columns = _columns(predictions)
                table.writerow(_header(predictions, columns))
                for part in predictions.parts:
                    for batch in predictions.batches(predictions.columns, part):
                        table.writerows(_rows(predictions, batch, columns))
            storage.put(target, folder / "rows")


def _columns(predictions: Predictions) -> list[str]:
    """Return the columns that are written as they are: all but the errors, the objects, vectors and maps."""
    kinds: list[tuple[str, Any]] = [(one.name, one.type) for one in predictions.result.schema]
    vectors = {
        name for name, kind in kinds if pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)
    }
    vectors |= {name for name, kind in kinds if name == "map" and kind in (MAP, MAP_RUNS)}
    apart = {"error", *([predictions.column] if predictions.are_objects else ())}
    return [name for name, _ in kinds if name not in apart | vectors]


def _header(predictions: Predictions, columns: Sequence[str]) -> list[str]:
    """Return the names of the cells; a column kept from the input that has one of ours is ``input_NAME``."""
    ours = [*_ERROR, *(_object_names(predictions) if predictions.are_objects else ())]
    return [*(f"input_{name}" if name in ours else name for name in columns), *ours]


def _object_names(predictions: Predictions) -> list[str]:
    return [*_OBJECT, *(name for name in ("mask", "keypoints", "is_thing") if predictions.has(name))]


def _rows(predictions: Predictions, batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[list[Any]]:
    codes = predictions.count(batch)
    batch = batch.filter(pa.array([code != FORGOTTEN for code in codes]))
    cells = [_cells(batch[name]) for name in columns]
    cells += [_cells(pc.struct_field(batch["error"], name)) for name in ("code", "stage", "message")]
    images = zip(*cells, strict=True)
    if not predictions.are_objects:
        yield from map(list, images)
        return
    names = _object_names(predictions)[len(_OBJECT) :]
    found = predictions.found(batch, np.zeros(batch.num_rows, bool))
    for image, objects in zip(images, found, strict=True):
        if not objects:
            yield [*image, *[None] * (len(_OBJECT) + len(names))]
        for number, one in enumerate(objects):
            score = None if math.isnan(one.score) else one.score
            yield [*image, number, _cell(one.label), score, *one.box, *_nested(one, names)]


def _nested(one: Found, names: Sequence[str]) -> list[Any]:
    return [_cell(getattr(one, name)) for name in names]


def _cells(column: Any) -> list[Any]:
    if pa.types.is_float32(column.type):  # its own digits, not those of the double that holds it
        return [None if text is None else float(text) for text in column.cast(pa.string()).to_pylist()]
    return list(map(_cell, column.to_pylist()))


def _cell(value: Any) -> Any:
    """Return what is written of a value: nested ones are JSON, bytes are base64."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | dict):
        return json.dumps(_strict(value), ensure_ascii=False, default=str)
    text = _strict(value) if isinstance(value, bytes) else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _strict(value: Any) -> Any:
    """Return a nested value without what JSON has not: numbers that are none are null."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
