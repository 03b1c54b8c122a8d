"""Rows that come image by image and are wanted class by class: in memory while few, else on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS_IN_MEMORY = 2_000_000


class ByClass:
    """A table whose column ``label`` is the class; `add` any rows, then `read` those of one class.

    At most ``rows_in_memory`` rows are held, and those of the class that is read. The others lie in
    Parquet in a temporary folder, a row group a class, and go with this object.
    """

    def __init__(self, schema: pa.Schema, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
        self.rows = 0
        self._schema = schema
        self._most = rows_in_memory
        self._held: dict[str, list[pa.Table]] = defaultdict(list)
        self._held_rows = 0
        self._folder: Path | None = None
        self._written: dict[str, list[tuple[Path, int]]] = defaultdict(list)

    def add(self, rows: pa.Table) -> None:
        """Take rows in; they must have the columns of the schema."""
        for label, some in _split(rows):
            self._held[label].append(some)
        self._held_rows += rows.num_rows
        self.rows += rows.num_rows
        if self._held_rows > self._most:
            self._spill()

    def labels(self) -> list[str]:
        """Return the classes that have rows, by name."""
        return sorted(self._held.keys() | self._written.keys())

    def read(self, label: str) -> pa.Table:
        """Return all rows of one class, in the order in which they came, without the memory of the others.

        A slice would be sent to another process with all that it is a slice of.
        """
        written = [pq.ParquetFile(path).read_row_group(group) for path, group in self._written.get(label, [])]
        rows = pa.concat_tables([self._schema.empty_table(), *written, *self._held.get(label, [])])
        return rows.combine_chunks()

    def _spill(self) -> None:
        """Write what is held as one file, a row group a class."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cnnbatch-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{self.rows}.parquet"
        with pq.ParquetWriter(path, self._schema) as writer:
            for group, (label, tables) in enumerate(self._held.items()):
                rows = pa.concat_tables(tables)
                writer.write_table(rows, row_group_size=rows.num_rows)
                self._written[label].append((path, group))
        self._held.clear()
        self._held_rows = 0


@dataclass(frozen=True, slots=True)
class DetectionPartial:
    """What some images contribute to a detector's numbers: a row a detection and a row a truth, by ``label``.

    ``excluded`` counts objects by the reason why they are left out.
    """

    detections: pa.Table
    truths: pa.Table
    excluded: Counter[str]


class MergedRows:
    """Partials put together: rows by class, each table's in memory up to ``rows_in_memory``, else on disk."""

    def __init__(
        self, detections: pa.Schema, truths: pa.Schema, rows_in_memory: int = ROWS_IN_MEMORY
    ) -> None:
        self.detections = ByClass(detections, rows_in_memory)
        self.truths = ByClass(truths, rows_in_memory)
        self.excluded = Counter[str]()

    def add(self, one: DetectionPartial) -> None:
        """Take one more partial in."""
        self.detections.add(one.detections)
        self.truths.add(one.truths)
        self.excluded += one.excluded

    def merged(self) -> Self:
        """Return itself: what was added lies here by class."""
        return self


def _split(rows: pa.Table) -> list[tuple[str, pa.Table]]:
    """Return the rows of each class, in their order."""
    coded: Any = rows["label"].combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    numbers = coded.indices
    ordered = rows.take(pc.sort_indices(numbers))
    counts = pc.value_counts(numbers)
    sizes = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    found, start = [], 0
    for number, label in enumerate(coded.dictionary.to_pylist()):
        found.append((label, ordered.slice(start, sizes[number])))
        start += sizes[number]
    return found
