"""The numbers of images and categories in COCO's files: those of the truth's own file, where it has some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice, repeat
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.output import integrity
from cnnbatch.output.export.predictions import Predictions
from cnnbatch.storage import NotFound, redact, without_query
from cnnbatch.truth import Class, classes_of
from cnnbatch.truth.classes import ModelClasses

Id = int | str

_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"


class TruthIds:
    """The ids of the output's truth where it is a COCO file, or where all of its images have whole numbers.

    Else an image's id is its place in the output, from 1 on.
    """

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions
        self._settings = predictions.result.settings
        self._is_coco = _is_coco(self._settings.get("input") or {})
        self._kind, self._places = self._kind_of_ids(), count(1)

    def images(self, part: int) -> Iterator[Id | None]:
        """Yield the id of every row of a part, asked for in order; None where the truth has no such image."""
        rows = self._predictions.footers[part].rows
        if self._kind is None:
            yield from islice(self._places, rows)
        else:
            column = self._column(part)
            yield from repeat(None, rows) if column is None else column.cast(self._kind).to_pylist()

    def categories(self, names: Sequence[str]) -> dict[str, Id]:
        """Return the id of each of ``names``; see `category_ids`."""
        known = [one for one in self._classes() if self._is_coco or isinstance(one.id, int)]
        aliases = (self._settings.get("task") or {}).get("aliases") or {}
        return category_ids(names, self._predictions.model(), known, aliases)

    def _classes(self) -> Sequence[Class]:
        try:
            with self._open(0) as file:
                return classes_of(pq.read_schema(file))
        except NotFound:
            return ()

    def _kind_of_ids(self) -> pa.DataType | None:
        """Return the type of the truth's ids; None where the images are counted instead."""
        columns = filter(None, map(self._column, self._predictions.parts))
        whole: list[bool | None] = [
            pc.all(pc.match_substring_regex(column, _WHOLE)).as_py() for column in columns
        ]
        known = [one for one in whole if one is not None]
        if known and all(known):
            return pa.int64()
        return pa.string() if known and self._is_coco else None

    def _column(self, part: int) -> Any:
        """Return the images' ids of a part as text; None where it has no truth."""
        try:
            with self._open(part) as file:
                column = pq.read_table(file, columns=["image_id"])["image_id"]
        except NotFound:
            return None
        footer = self._predictions.footers[part]
        if len(column) != footer.rows:
            raise UserError(
                f"{redact(footer.part)}: expected ground truth of {footer.rows:,} rows, got {len(column):,}\n"
                "  what to do: run the job again, into another output"
            )
        return column

    @contextmanager
    def _open(self, part: int) -> Iterator[BinaryIO]:
        output, footer = self._predictions.output, self._predictions.footers[part]
        uri = output.truth(footer.receipt.shard)
        with output.storage.open(uri) as file, integrity.reading(uri):
            yield file


def _is_coco(input: Mapping[str, Any]) -> bool:
    """Say whether a job's input is a COCO file, or has one as its truth."""
    files = [without_query(str(file)).lower() for file in (input.get("truth"), input.get("url"))]
    guessed = input.get("format", "auto") == "auto" and any(file.endswith(".json") for file in files)
    return guessed or input.get("format") == "coco"


def category_ids(
    names: Sequence[str], model: ModelClasses, truth: Sequence[Class], aliases: Mapping[str, str | None]
) -> dict[str, Id]:
    """Return the id of each of ``names``: the truth's, else the model's where it is free, else a new one.

    ``aliases`` lead from the truth's names to the model's, as `truth.classes.match_classes` takes them.
    """
    by_name, by_id = model.by_name() | {name: name for name in names}, model.by_id(truth)
    found: dict[str, Id] = {}
    for one in truth:
        meant = aliases.get(one.name, one.name)
        name = None if meant is None else by_name.get(meant, by_id.get(one.id))
        if name is not None:
            found.setdefault(name, one.id)
    own = dict(zip(reversed(model.names), reversed(model.ids), strict=False))
    taken = {one.id for one in truth}
    new = count(max([0, *model.ids, *(one for one in taken if isinstance(one, int))]) + 1)
    for name in names:
        if name not in found:
            number = own.get(name)
            found[name] = next(new) if number is None or number in taken else number
            taken.add(found[name])
    return {name: found[name] for name in names}
