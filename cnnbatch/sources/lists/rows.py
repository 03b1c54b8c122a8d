"""The three forms of a list, each a stream of (place, cells), the place as a person would look for it."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.storage import redact, without_query
from cnnbatch.storage.parquet.files import ParquetTable, as_user_error
from cnnbatch.storage.text import LongLine, text_lines

ADDRESS = "\0address"
"""The one column of a plain text list; no file can have a column of this name."""

_LINE = 1 << 20  # bytes; a longer line means that the file is no list
_BATCH = 4096  # rows of Parquet decoded at once
_BUFFER = 1 << 20  # bytes of each Parquet column read ahead
_DELIMITERS = ",;\t|"
_BLANKS = " \t\v\f\u00a0\u3000"
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
    suffix = posixpath.splitext(without_query(redact(url)))[1].lower()
    forms: dict[str, Form] = {".parquet": ParquetForm(), ".csv": Csv(), ".tsv": Csv("\t")}
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
        for number, line in enumerate(lines_of(file, where), 1):
            if text := line.strip():
                yield number, {ADDRESS: text}


@dataclass(frozen=True)
class Csv:
    """Cells with the columns' ``names`` in the first row, where they are not given.

    The delimiter is the most frequent one in the first row. Blanks around names and cells are no
    part of them, but those in quotes.
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
        lines = lines_of(file, where)
        first = next(lines, "")
        delimiter = self.delimiter or max(_DELIMITERS, key=first.count)
        trimmed = map(_Trimmed(delimiter).line, chain([first], lines))
        reader = csv.reader(trimmed, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(
                f"{where}, line {reader.line_num}: {error}\n  what to do: mend the quotes"
            ) from None


@dataclass(frozen=True)
class ParquetForm:
    """A Parquet file, read batch by batch; columns keep their types."""

    place: str = "row"

    def header(self, file: BinaryIO, where: str) -> pa.Schema:
        """Return the file's own schema."""
        with as_user_error(where):
            return ParquetTable(file, _BUFFER).schema

    def rows(self, file: BinaryIO, names: Sequence[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Stream the rows; the first is row 0."""
        with as_user_error(where):
            table = ParquetTable(file, _BUFFER)
            place = 0
            for group in range(table.groups):
                for cells in table.cells(group, names, _BATCH):
                    yield place, cells
                    place += 1


class _Trimmed:
    """Takes the blanks off the cells of a CSV, line by line; those in quotes are meant.

    The csv module keeps them, and takes those behind a closing quote for a mistake.
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._quoted = False

    def line(self, line: str) -> str:
        """Return the next line; a quoted cell may reach over several."""
        pieces = line.split('"')
        opens = True  # whether a quote would, where nothing stands before it
        for place, piece in enumerate(pieces):
            if place:
                before = pieces[place - 1]
                opens, self._quoted = (
                    self._quoted,
                    not self._quoted and (before.endswith(self._delimiter) or (opens and not before)),
                )
            if not self._quoted and piece != self._delimiter:
                pieces[place] = self._bare(piece, place == 0, place == len(pieces) - 1)
        return '"'.join(pieces)

    def _bare(self, piece: str, first: bool, last: bool) -> str:
        """Return a piece outside of quotes, the ``first`` or the ``last`` of its line."""
        whole = piece.rstrip("\r\n") if last else piece
        cells = whole.split(self._delimiter)
        begins = [cell.lstrip(_BLANKS) if first or place else cell for place, cell in enumerate(cells)]
        ends = [*(cell.rstrip(_BLANKS) for cell in begins[:-1]), begins[-1]]
        if last:
            ends[-1] = ends[-1].rstrip(_BLANKS)
        return self._delimiter.join(ends) + piece[len(whole) :]


def lines_of(file: BinaryIO, where: str, errors: str = "strict") -> Iterator[str]:
    """Stream the lines of a list, each with its end; raises UserError for what is no such text."""
    number = 0
    try:
        for line in text_lines(file, _LINE, errors):
            number += 1
            yield line
    except LongLine:
        raise UserError(f"{where}, line {number + 1}: an address was expected, got {_LINE:,} bytes") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}, line {number + 1}: UTF-8 was expected ({error.reason})\n"
            "  what to do: save the list as UTF-8"
        ) from None
