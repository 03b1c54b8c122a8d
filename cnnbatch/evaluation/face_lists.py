"""Lists that faces are judged by: pairs to be told apart (a, b, same, fold) and people (file, person)."""

from __future__ import annotations

import csv
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TypeVar

from cnnbatch.errors import UserError
from cnnbatch.evaluation.slicing import NULL
from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, redact
from cnnbatch.storage.text import LongLine, text_lines

PAIRS = ("a", "b", "same")
PEOPLE = ("file", "person")

_LONGEST = 1 << 16  # bytes of a line
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class FacePairList:
    """Pairs of pictures, and whether both are of one person; ``folds`` are numbers from 0, or None.

    ``columns`` are the texts of the list's further columns, by which its pairs may be sliced.
    """

    first: Sequence[str]
    second: Sequence[str]
    same: Sequence[bool]
    folds: Sequence[int] | None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """All pictures, each once."""
        return [*dict.fromkeys([*self.first, *self.second])]

    def without(self, files: Set[str]) -> FacePairList:
        """Return the pairs that have none of ``files``."""
        pairs = zip(self.first, self.second, strict=True)
        kept = [row for row, pair in enumerate(pairs) if files.isdisjoint(pair)]
        folds = None if self.folds is None else _at(self.folds, kept)
        columns = {name: _at(values, kept) for name, values in self.columns.items()}
        return FacePairList(
            _at(self.first, kept), _at(self.second, kept), _at(self.same, kept), folds, columns
        )

    def people(self) -> dict[str, str]:
        """Return who is in each picture, as far as the list tells.

        The folders' names, where two pictures are of one folder exactly where a pair is the same; else
        pictures that pairs join are of one person, and any other is of a person of its own. Raises UserError
        where the pairs contradict each other.
        """
        folders = {file: posixpath.dirname(file) for file in self.files}
        pairs = [*zip(self.first, self.second, self.same, strict=True)]
        if all((folders[one] == folders[other]) == same for one, other, same in pairs):
            return folders
        joined = _joined([(one, other) for one, other, same in pairs if same], self.files)
        for one, other, same in pairs:
            if not same and joined[one] == joined[other]:
                raise UserError(
                    f"the list says that {one} and {other} are two people, and by other pairs that they are "
                    "one\n  what to do: mend the list"
                )
        return joined


@dataclass(frozen=True, slots=True)
class PeopleList:
    """Pictures and who is in each; ``columns`` are the texts of the list's further columns."""

    files: Sequence[str]
    people: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def without(self, files: Set[str]) -> PeopleList:
        """Return the list without ``files``."""
        kept = [row for row, file in enumerate(self.files) if file not in files]
        columns = {name: _at(values, kept) for name, values in self.columns.items()}
        return PeopleList(_at(self.files, kept), _at(self.people, kept), columns)


T = TypeVar("T")


def _at(values: Sequence[T], rows: Sequence[int]) -> list[T]:
    return [values[row] for row in rows]


FaceList = FacePairList | PeopleList


def read_face_list(uri: str, storage: Storage) -> FaceList | None:
    """Return the list of faces in a CSV file; None where it is no CSV file of such columns.

    Raises UserError for a list that can't be read, and for rows that say nothing or contradict others.
    """
    if not uri.lower().endswith(".csv"):
        return None
    try:
        with storage.open(uri) as file:
            rows = csv.DictReader(text_lines(file, _LONGEST))
            names = list(rows.fieldnames or ())
            if {*names} >= {*PAIRS}:
                return _pairs(uri, rows, names)
            return _people(uri, rows, names) if {*names} >= {*PEOPLE} else None
    except (NotFound, Forbidden, Unreadable, UnicodeDecodeError, LongLine, csv.Error) as error:
        raise UserError(
            f"truth: expected a CSV file with the columns {', '.join(PAIRS)} or {', '.join(PEOPLE)}; "
            f"{redact(uri)} can't be read: {error}"
        ) from error


def is_no_face_list(field: str, uri: str) -> UserError:
    """Return what to say of a ``field`` that has to name a list of faces and names another file."""
    return UserError(
        f"{field}: expected a CSV file with the columns {', '.join(PAIRS)} or {', '.join(PEOPLE)}, got "
        f"{redact(uri)}\n  what to do: name the columns so in its first line"
    )


Row = Mapping[str, str | None]


def _pairs(uri: str, rows: Iterator[Row], names: Sequence[str]) -> FacePairList:
    first, second, same = list[str](), list[str](), list[bool]()
    folds: list[int] | None = [] if "fold" in names else None
    further = _Further(names, PAIRS)
    for number, row in enumerate(rows, 2):
        further.add(row)
        first.append(_cell(uri, number, row, "a"))
        second.append(_cell(uri, number, row, "b"))
        same.append(bool(_read(uri, number, row, "same", _truth, "1 or 0")))
        if folds is not None:
            folds.append(_read(uri, number, row, "fold", _fold, "a whole number from 0 to 32767"))
    _require_rows(uri, first)
    if folds is not None and min(folds) > 0:  # LFW counts its folds from 1.
        folds = [one - min(folds) for one in folds]
    return FacePairList(first, second, same, folds, further.columns)


def _people(uri: str, rows: Iterator[Row], names: Sequence[str]) -> PeopleList:
    files, people = list[str](), list[str]()
    further = _Further(names, PEOPLE)
    for number, row in enumerate(rows, 2):
        further.add(row)
        files.append(_cell(uri, number, row, "file"))
        people.append(_cell(uri, number, row, "person"))
    _require_rows(uri, files)
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise UserError(
            f"{redact(uri)}: expected each picture once, got {len(twice):,} of them more than once, as "
            f"{', '.join(twice[:_SHOWN])}\n  what to do: leave the others out"
        )
    return PeopleList(files, people, further.columns)


class _Further:
    """The columns of a list beside those that every list has, as texts."""

    def __init__(self, names: Sequence[str], own: Sequence[str]) -> None:
        self.columns: dict[str, list[str]] = {name: [] for name in names if name not in own}

    def add(self, row: Row) -> None:
        for name, values in self.columns.items():
            values.append((row.get(name) or "").strip() or NULL)


def _require_rows(uri: str, rows: Sequence[str]) -> None:
    if not rows:
        raise UserError(f"{redact(uri)}: expected at least one row below the names of the columns, got none")


def _cell(uri: str, number: int, row: Row, name: str) -> str:
    if value := (row.get(name) or "").strip():
        return value
    raise UserError(f"{redact(uri)}, line {number}: expected a value in the column {name}, got none")


def _read(
    uri: str, number: int, row: Row, name: str, convert: Callable[[str], int | None], expected: str
) -> int:
    text = _cell(uri, number, row, name)
    if (value := convert(text)) is None:
        raise UserError(
            f"{redact(uri)}, line {number}: expected {expected} in the column {name}, got {text!r}"
        )
    return value


def _truth(text: str) -> bool | None:
    return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None


def _fold(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) < 1 << 15 else None


def _joined(pairs: Sequence[tuple[str, str]], files: Sequence[str]) -> dict[str, str]:
    """Return for each file one that stands for all that pairs join with it."""
    leader = {file: file for file in files}

    def of(file: str) -> str:
        while leader[file] != file:
            leader[file] = leader[leader[file]]
            file = leader[file]
        return file

    for one, other in pairs:
        leader[of(one)] = of(other)
    return {file: of(file) for file in files}
