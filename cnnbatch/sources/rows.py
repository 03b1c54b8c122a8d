"""The three forms of a list, each a stream of (place, cells), the place as a person would look for it."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cnnbatch.errors import UserError
from cnnbatch.storage import redact

ADDRESS = "\0address"
"""The one column of a plain text list; no file can have a column of this name."""

_LINE = 1 << 20  # bytes; a longer line means that the file is no list
_BATCH = 4096  # rows of Parquet decoded at once
_BUFFER = 1 << 20  # bytes of each Parquet column read ahead
_DELIMITERS = ",;\t|"
csv.field_size_limit(_LINE)  # an address as long as a line may be is its row's fault, not the list's


class Form(Protocol):
    """How a list is written."""

    @property
    def place(self) -> str:
        """What a row is counted in, as a person says it."""

    def header(self, file: BinaryIO, where: str) -> pa.Schema:
        """Return the columns and their types; ``where`` names the file in messages."""

    def rows(self, file: BinaryIO, names: Sequence[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Stream the cells of some columns, each row with its place."""


def form_of(url: str) -> Form:
    """Return the form that an address's suffix tells; plain text when it tells none."""
    suffix = posixpath.splitext(redact(url).split("?")[0])[1].lower()
    forms: dict[str, Form] = {".parquet": Parquet(), ".csv": Csv(), ".tsv": Csv("\t")}
    return forms.get(suffix, Text())


@dataclass(frozen=True)
class Text:
    """One address a line; empty lines are none."""

    place: str = "line"

    def header(self, file: BinaryIO, where: str) -> pa.Schema:
        """Return the one column."""
        return pa.schema([(ADDRESS, pa.string())])

    def rows(self, file: BinaryIO, names: Sequence[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Stream the lines."""
        for number, line in enumerate(_lines(file, where), 1):
            if text := line.strip():
                yield number, {ADDRESS: text}


@dataclass(frozen=True)
class Csv:
    """Cells with the columns' ``names`` in the first row, where they are not given.

    The delimiter is the most frequent one in the first row.
    """

    delimiter: str | None = None
    names: tuple[str, ...] = ()
    place: str = "line"

    def header(self, file: BinaryIO, where: str) -> pa.Schema:
        """Return the names; all types are strings."""
        names = list(self.names) or next((cells for _, cells in self._cells(file, where)), [])
        return pa.schema([(name.strip(), pa.string()) for name in names])

    def rows(self, file: BinaryIO, names: Sequence[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Stream the rows behind the names; one with more or fewer cells is a `UserError`."""
        cells_of = self._cells(file, where)
        header = [name.strip() for name in self.names or next(cells_of)[1]]
        positions = [(name, header.index(name)) for name in names]
        for line, cells in cells_of:
            if len(cells) != len(header):
                raise UserError(
                    f"{where}, line {line}: {len(header)} cells were expected, got {len(cells)}\n"
                    "  what to do: put cells that hold the delimiter in double quotes"
                )
            yield line, {name: cells[position] for name, position in positions}

    def _cells(self, file: BinaryIO, where: str) -> Iterator[tuple[int, list[str]]]:
        lines = _lines(file, where)
        first = next(lines, "")
        delimiter = self.delimiter or max(_DELIMITERS, key=first.count)
        reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(
                f"{where}, line {reader.line_num}: {error}\n  what to do: mend the quotes"
            ) from None


@dataclass(frozen=True)
class Parquet:
    """A Parquet file, read batch by batch; columns keep their types."""

    place: str = "row"

    def header(self, file: BinaryIO, where: str) -> pa.Schema:
        """Return the file's own schema."""
        return _parquet(file, where).schema_arrow

    def rows(self, file: BinaryIO, names: Sequence[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Stream the rows; the first is row 0."""
        place = 0
        try:
            for batch in _parquet(file, where).iter_batches(_BATCH, columns=list(names), use_threads=False):
                for cells in batch.to_pylist():
                    yield place, cells
                    place += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{where}, behind row {place}: {error}\n  what to do: write the file again"
            ) from None


def _parquet(file: BinaryIO, where: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise UserError(f"{where} is no Parquet file: {error}\n  what to do: check the file") from None


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _lines(file: BinaryIO, where: str) -> Iterator[str]:
    """Stream the lines of a UTF-8 file, each with its end."""
    number = 1
    while line := file.readline(_LINE):
        if len(line) == _LINE:
            raise UserError(f"{where}, line {number}: an address was expected, got {_LINE:,} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}, line {number}: UTF-8 was expected ({error.reason})\n"
                "  what to do: save the list as UTF-8"
            ) from None
        number += 1
