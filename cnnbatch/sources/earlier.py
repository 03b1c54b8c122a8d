"""What an earlier job answered as ground truth, for images of any input that have the same keys.

Answers lie in parts in the order of that job, so each worker copies them to its disk once, by key; the price
is that every one reads all of them.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import require_whole
from cnnbatch.output.reader import Reader
from cnnbatch.sources.masks.meaning import VALUES, Meaning, meaning_of
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.storage.scratch import on_disk, scratch
from cnnbatch.truth import Class
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import ImageRef, Shard, Source

if TYPE_CHECKING:
    from cnnbatch.config.input import Input

_TABLES = "CREATE TABLE answer (key TEXT PRIMARY KEY, body, width, height) WITHOUT ROWID;"
_CACHE_KB = 32 << 10
_TRIED = 1000  # images that have no answer, from the first on, before the keys are thought to differ


@dataclass(frozen=True)
class EarlierTruth(SourceWrapper):
    """The images of ``source`` with what the job of ``output`` answered; each is named by its key.

    ``answer`` is the kind. Of objects those count that score at least ``min_score``, and those without a
    score; numbers of maps are places among the model's ``classes``, whose ``meaning`` the job may change.
    """

    output: Output
    answer: str
    min_score: float
    classes: tuple[Class, ...]
    meaning: Meaning

    @property
    def truth_schema(self) -> pa.Schema:
        """The columns of the kind of answer, with the model's classes."""
        if self.answer == "map":
            return self.meaning.schema
        return truth.with_classes(_SCHEMAS[self.answer], self.classes)

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images; where the first thousand have no answer, that is a `UserError`."""
        checked = 0 if after is None else _TRIED
        for ref in self.source.refs(after):
            if checked < _TRIED:
                checked = _TRIED if self._answers.has(ref.key) else checked + 1
                if checked == _TRIED and not self._answers.has(ref.key):
                    raise self._strangers(checked, ref.key)
            yield ref
        if 0 < checked < _TRIED:
            raise self._strangers(checked, ref.key)

    def truth(self, shard: Shard) -> pa.Table:
        """Return what was answered of each image; null where nothing was."""
        return truth.table([self._row(ref.key) for ref in shard.refs], self.truth_schema)

    def _row(self, key: str) -> dict[str, Any]:
        found = self._answers.of(key)
        if found is None:
            return {}
        body, width, height = found
        row = {"image_id": key, self.answer: self._value(body)}
        return row if self.answer == "label" else {**row, "width": width, "height": height}

    def _value(self, body: bytes | str) -> Any:
        if self.answer != "map":
            return json.loads(body)
        data = self.output.asset(body) if isinstance(body, str) else body
        if not self.meaning.moved:
            return data
        return class_map.png(self.meaning.of(class_map.from_png(data)), compress_level=1)

    @cached_property
    def _answers(self) -> _Answers:
        return _Answers(self.output, self.answer, self.min_score)

    def _strangers(self, count: int, key: str) -> UserError:
        return UserError(
            f"input.truth: {redact(self.output.uri)} has none of the first {count:,} images, such as "
            f"{key!r}\n  what to do: give as input.url what that job read; keys are paths relative to it"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave the copy behind, which each process makes for itself."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class _Answers:
    """The answers of an output by key, in a file without a name."""

    def __init__(self, output: Output, answer: str, min_score: float) -> None:
        self._lock = threading.Lock()
        require_whole(output)
        result = Reader(output.uri, output.storage)
        with on_disk(f"the answers of {redact(output.uri)}"):
            self._base = scratch(self, _TABLES, _CACHE_KB)
            for batch in result.batches(["key", "width", "height", answer]):
                rows = (_body(row, answer, min_score) for row in batch.to_pylist() if row[answer] is not None)
                self._base.executemany("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?)", rows)
            self._base.commit()

    def has(self, key: str) -> bool:
        """Say whether an image was answered."""
        return self.of(key) is not None

    def of(self, key: str) -> tuple[bytes | str, int, int] | None:
        """Return an image's answer, with the width and height that it is for."""
        with self._lock:
            cursor: sqlite3.Cursor = self._base.execute(
                "SELECT body, width, height FROM answer WHERE key = ?", (key,)
            )
            found: tuple[bytes | str, int, int] | None = cursor.fetchone()
        return found


def _body(row: Mapping[str, Any], answer: str, min_score: float) -> tuple[Any, ...]:
    """Return a row as it is kept: maps as PNG files or the addresses of such, all else as JSON."""
    value, size = row[answer], (row["width"], row["height"])
    if answer == "objects":
        value = [_object(one) for one in value if one.get("score") is None or one["score"] >= min_score]
    elif answer == "map" and isinstance(value, list):
        value = class_map.png(class_map.from_runs(value, size[::-1]), compress_level=1)
    return (row["key"], value if answer == "map" else json.dumps(value), *size)


def _object(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a truth has of a predicted object, whose score says nothing of what is true."""
    return {name: value for name, value in one.items() if name in _OF_OBJECTS and name != "score"}


_SCHEMAS = {"objects": truth.OBJECTS_SCHEMA, "label": truth.LABEL_SCHEMA, "map": truth.MAP_SCHEMA}
_OBJECT: Any = truth.OBJECTS.value_type
_OF_OBJECTS = frozenset(one.name for one in _OBJECT)


def with_earlier_truth(source: Source, input: Input, uri: str, storage: Storage) -> EarlierTruth:
    """Return ``source`` with the answers of the output at ``uri``; `UserError` where these are no truth."""
    result = Reader(normalize(uri), storage)
    kept = (result.settings.get("input") or {}).get("keep") or ()
    answer = next(
        (one for one in ("map", "objects", "label") if one in result.schema.names and one not in kept), None
    )
    if answer is None:
        raise UserError(
            f"input.truth: {redact(uri)} has nothing to be a ground truth: its columns are "
            f"{', '.join(result.schema.names)}\n  what to do: give the output of segment, detect or classify"
        )
    output = Output(normalize(uri), storage)
    known = output.decided("classes")
    names = ModelClasses(**known).names if known else ()
    classes = [Class(name, number) for number, name in enumerate(names) if name]
    meaning = Meaning((), frozenset())
    if answer == "map":  # Whose pixels of no class have the largest number where 255 is a class.
        none = (VALUES - 1,) if len(names) > class_map.NONE else ()
        meaning = meaning_of(input.model_copy(update={"ignore": (*input.ignore, *none)}), classes)
    return EarlierTruth(source, output, answer, input.min_score, tuple(classes), meaning)
