"""Joins another ground truth to an output's rows by key, so that it is read as the job's own would be."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.output.folder import Output
from cnnbatch.output.reader import Reader
from cnnbatch.output.truth_file import truth_file
from cnnbatch.sources.soundness import CHECKED, Problem, problems_of, unsound
from cnnbatch.storage import redact
from cnnbatch.storage.scratch import on_disk, scratch
from cnnbatch.truth import table
from cnnbatch.truth.problems import check_sizes
from cnnbatch.types import Shard, Source

_IMAGES = 1000  # at a time
_TABLES = "CREATE TABLE truth (key TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;"
_CACHE_KB = 64_000


@dataclass(frozen=True, slots=True)
class Aligned:
    """The folder of a ground truth's parts, and how many of its images the output lacks: ``unused``."""

    folder: str
    unused: int


class TruthByKey:
    """The truth of a source by key, on disk: it may be larger than memory."""

    def __init__(self, source: Source) -> None:
        schema = source.truth_schema
        if schema is None:
            raise UserError(
                "expected ground truth, but this input has none\n"
                "  what to do: say where it lies in truth=, and its kind in format= (coco, voc, folders …)"
            )
        self.schema = schema
        self._base = scratch(self, _TABLES, _CACHE_KB)
        with on_disk("the ground truth"):
            for rows in _rows(source):
                self._base.executemany("INSERT OR REPLACE INTO truth VALUES (?, ?)", rows)
        self.images: int = self._base.execute("SELECT count(*) FROM truth").fetchone()[0]

    def of(self, keys: Sequence[str]) -> tuple[pa.Table, int]:
        """Return the rows of some images, null where there is none, and how many there are."""
        found = [self._base.execute("SELECT row FROM truth WHERE key = ?", [key]).fetchone() for key in keys]
        rows = [_row(one[0], self.schema) if one else {} for one in found]
        return table(rows, self.schema), sum(one is not None for one in found)


def align(source: Source, output: Output, result: Reader) -> Aligned:
    """Write the truth of ``source`` as parts that match those of ``output``; return where.

    Raises UserError where the source has no truth, or none for any image of the output, and where masks of
    the first images can't be used.
    """
    truths, used = TruthByKey(source), 0
    if getattr(source, "reads_masks", False) or getattr(source, "has_masks", False):
        _require_usable(_parts(truths, output, result))
    folder = output.path("evaluation", "truth")
    for part in _parts(truths, output, result):
        uri = output.path("evaluation", "truth", f"part-{part.index:08}.parquet")
        output.storage.put(uri, truth_file(part.truth))
        used += part.used
    if not used:
        raise UserError(
            f"expected ground truth for the images of {redact(output.uri)}, but it has none of its keys\n"
            "  what to do: give that of the same collection; keys are paths relative to the input's root"
        )
    return Aligned(folder, truths.images - used)


@dataclass(frozen=True, slots=True)
class _Part:
    """The truth of the images of one part, null where there is none; ``used`` of them have one."""

    index: int
    keys: Sequence[str]
    truth: pa.Table
    used: int


def _parts(truths: TruthByKey, output: Output, result: Reader) -> Iterator[_Part]:
    for place, index in enumerate(sorted(output.finished())):
        columns = result.batches(["key", "width", "height"], place)
        rows = [row for batch in columns for row in batch.to_pylist()]
        keys = [row["key"] for row in rows]
        found, used = truths.of(keys)
        sizes = [(row["width"], row["height"]) if row["width"] else None for row in rows]
        yield _Part(index, keys, check_sizes(found, sizes), used)


def _require_usable(parts: Iterable[_Part]) -> None:
    """Insist that the masks of the first images can be used, as a run does before its first shard."""
    problems, images = list[Problem](), 0
    for part in parts:
        problems += problems_of(part.keys, part.truth)
        images += len(part.keys)
        if images >= CHECKED:
            break
    if problems:
        raise unsound(problems, f"the first {images:,} images")


def _rows(source: Source) -> Iterator[list[tuple[str, str]]]:
    """Yield keys and rows of the source's truth, some at a time; an image without truth has none."""
    refs = source.refs()
    while some := tuple(islice(refs, _IMAGES)):
        found = source.truth(Shard(0, some))
        rows = [] if found is None else found.to_pylist()
        yield [
            (ref.key, json.dumps(row, default=_in_text))
            for ref, row in zip(some, rows, strict=True)
            if any(value is not None for value in row.values())
        ]


def _in_text(value: bytes) -> str:
    """Return bytes as JSON has them here."""
    return b64encode(value).decode()


def _row(text: str, schema: pa.Schema) -> dict[str, Any]:
    """Return a row of a truth from its JSON."""
    row: dict[str, Any] = json.loads(text)
    for field in schema:
        if pa.types.is_large_binary(field.type) and row.get(field.name) is not None:
            row[field.name] = b64decode(row[field.name])
    return row
