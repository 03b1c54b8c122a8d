"""``cnnbatch persons``: people name persons, and say which are one and which are two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.persons.changing import change, require_persons
from cnnbatch.index.persons.group import FacesInOrder, with_persons
from cnnbatch.index.persons.grouping import NOBODY, Ints, halves
from cnnbatch.index.persons.record import Face, Faces, Persons, faces_of, read_persons
from cnnbatch.index.search import Index
from cnnbatch.storage import redact

_NAMED = 5  # contradictions that a message shows


@dataclass(frozen=True, slots=True)
class Cut:
    """A person cut in two: the faces of both halves, tables of `record.FACES`; the first keeps the number."""

    person: int
    first: pa.Table
    second: pa.Table


def name(uri: str, person: str, called: str) -> Persons:
    """Give a person of the index at ``uri`` a name; an empty one takes it away. Raises UserError."""

    def to(index: Index, before: Persons | None) -> Persons:
        persons = require_persons(index.uri, index.storage, before)
        number = persons.number(person)
        _require_name(called)
        holder = {each: one for one, each in persons.said.names.items()}.get(called, number)
        if holder != number and holder in persons.sizes():
            raise UserError(
                f"person {holder} is called {called!r} already; nothing was changed\n"
                f"  what to do: give another name, or make them one with --merge {holder} {number}"
            )
        said = persons.said.with_name(holder, None)
        return replace(persons, said=said.with_name(number, called or None))

    return change(uri, to)


def merge(uri: str, one: str, other: str) -> Persons:
    """Make two persons of the index at ``uri`` one, which keeps the number and the name of the first.

    Without a name it takes that of the second. The second may also be an unsure face, by its id. A later
    grouping keeps them together. Raises UserError where it was said that faces of them are of two.
    """

    def to(index: Index, before: Persons | None) -> Persons:
        persons = require_persons(index.uri, index.storage, before)
        first = persons.number(one)
        faces = {*faces_of(persons.of(first))}
        unsure = _unsure(persons, other)
        second = NOBODY if unsure else persons.number(other)
        if first == second:
            raise UserError(
                f"{persons.title(first)} can't be merged with itself\n  what to do: give two persons"
            )
        more = unsure or {*faces_of(persons.of(second))}
        if against := [pair for sides in persons.said.apart for pair in _across(sides, faces, more)]:
            called = "the face" if unsure else persons.title(second)
            raise UserError(
                f"{persons.title(first)} and {called} have faces of which it was said that they are of two "
                f"persons, {_shown(against)}; nothing was changed\n"
                "  what to do: take that back with --take-back, or move these faces with --split first"
            )
        said = persons.said
        name = said.names.get(first) or said.names.get(second)
        said = said.with_name(second, None).with_name(first, name)
        said = said.model_copy(update={"together": (*said.together, tuple(sorted(faces | more)))})
        numbers = persons.numbers()
        numbers[[face in more for face in faces_of(persons.faces)]] = first
        return _renumbered(index, replace(persons, said=said), numbers)

    return change(uri, to)


def proposed(index: Index, persons: Persons, person: str, faces: Sequence[str] = ()) -> Cut:
    """Return how a person would be cut in two: the ``faces`` that are named by id, else by average linkage.

    What was said to be together stays so. Raises UserError where that leaves no cut, or where faces of both
    halves were said to be of one person.
    """
    number = persons.number(person)
    own, rows = _in_index(index, persons, number)
    second = _named(persons, own, number, faces) if faces else _by_linkage(index, persons, own, rows)
    if not second.any() or second.all():
        raise UserError(
            f"{persons.title(number)} can't be cut in two: {_why_whole(own, second)}; nothing was changed\n"
            "  what to do: name the faces of the second half with --faces"
        )
    cut = Cut(number, own.filter(pa.array(~second)), own.filter(pa.array(second)))
    _require_free(persons, cut)
    return cut


def split(uri: str, person: str, faces: Sequence[str] = ()) -> Persons:
    """Cut a person of the index at ``uri`` in two, as `proposed`; the second half gets a new number.

    A later grouping keeps them two. Raises UserError as `proposed` does.
    """

    def to(index: Index, before: Persons | None) -> Persons:
        persons = require_persons(index.uri, index.storage, before)
        cut = proposed(index, persons, person, faces)
        sides = (tuple(faces_of(cut.first)), tuple(faces_of(cut.second)))
        said = persons.said
        said = said.model_copy(update={"apart": (*said.apart, sides), "following": said.following + 1})
        numbers = persons.numbers()
        second = {*sides[1]}
        numbers[[face in second for face in faces_of(persons.faces)]] = said.following - 1
        return _renumbered(index, replace(persons, said=said), numbers)

    return change(uri, to)


def take_back(uri: str, person: str) -> Persons:
    """Take back what was said of the faces of a person, or of one face that is named by id.

    Raises UserError where nothing was.
    """

    def to(index: Index, before: Persons | None) -> Persons:
        persons = require_persons(index.uri, index.storage, before)
        said = {*persons.said.faces()}
        meant, faces = f"the face {person}", {face for face in said if face[1] == person}
        if not faces and not persons.faces.filter(pc.field("id") == person).num_rows:
            number = persons.number(person)
            meant, faces = f"the faces of {persons.title(number)}", {*faces_of(persons.of(number))}
        if faces.isdisjoint(said):
            raise UserError(
                f"nothing was said of {meant} that could be taken back; nothing was changed\n"
                "  what to do: only what --merge and --split said is taken back, and no name"
            )
        return replace(persons, said=persons.said.without(faces))

    return change(uri, to)


def persons_of(index: Index) -> Persons:
    """Return who is who in an index; raises UserError where nobody has grouped it."""
    return require_persons(index.uri, index.storage, read_persons(index.uri, index.storage, index.manifest))


def as_table(persons: Persons) -> pa.Table:
    """Return a row a face: ``output``, ``id``, ``person``, ``similarity``, and the person's ``name``."""
    numbers = persons.faces["person"].to_pylist()
    names = [None if number is None else persons.said.names.get(number) for number in numbers]
    return persons.faces.append_column("name", pa.array(names, pa.string()))


def proposal_lines(cut: Cut) -> Iterator[str]:
    """Yield the faces of both halves."""
    for half, faces in (("first", cut.first), ("second", cut.second)):
        for _, face in faces_of(faces):
            yield f"{half}\t{face}"


def lines(persons: Persons) -> Iterator[str]:
    """Yield a line a person, those with most faces first."""
    typical = persons.faces.filter(persons.faces["person"].is_valid()).sort_by(
        [("person", "ascending"), ("similarity", "descending")]
    )
    numbers, first = np.unique(typical["person"].to_numpy(), return_index=True)
    shown = dict(zip(numbers.tolist(), typical.take(first.tolist())["id"].to_pylist(), strict=True))
    for number, size in sorted(persons.sizes().items(), key=lambda pair: (-pair[1], pair[0])):
        yield f"{number}\t{persons.said.names.get(number, '')}\t{size:,}\t{shown[number]}"
    if unsure := persons.faces["person"].null_count:
        yield f"\tunsure\t{unsure:,}\t"


def _require_free(persons: Persons, cut: Cut) -> None:
    """Refuse a cut between faces of which it was said that they are of one person; raises UserError."""
    halves = ({*faces_of(cut.first)}, {*faces_of(cut.second)})
    if against := [pair for one in persons.said.together for pair in _across((one, one), *halves)]:
        raise UserError(
            f"the halves of {persons.title(cut.person)} have faces of which it was said that they are of "
            f"one person, {_shown(against)}; nothing was changed\n"
            "  what to do: take that back with --take-back, or give other --faces"
        )


def _require_name(called: str) -> None:
    if called.isdecimal():
        raise UserError(
            f"expected a name that is no number, got {called!r}; nothing was changed\n"
            "  what to do: give another name; a number means the person who has it"
        )
    if not called.isprintable() or called != called.strip():
        raise UserError(
            f"expected a name of one line without blanks around it, got {called!r}; nothing was changed\n"
            "  what to do: give it without them"
        )


def _in_index(index: Index, persons: Persons, number: int) -> tuple[pa.Table, Ints]:
    """Return the faces of a person that the index has still, and their rows; raises UserError for none."""
    own = persons.of(number)
    rows = FacesInOrder.of(index.copy()).rows_of(own)
    own, rows = own.filter(pa.array(rows != NOBODY)), rows[rows != NOBODY]
    if not len(rows):
        raise UserError(
            f"{persons.title(number)} has no faces in the index any more\n"
            f"  what to do: give cnnbatch group {redact(index.uri)}, which forgets such persons"
        )
    return own, rows


def _across(sides: tuple[Faces, Faces], one: set[Face], other: set[Face]) -> Iterator[tuple[Face, Face]]:
    """Yield a face of ``one`` and a face of ``other`` of which something was said, if there are any."""
    for first, second in (sides, sides[::-1]):
        if (left := one & {*first}) and (right := other & {*second}):
            yield min(left), min(right)
            return


def _unsure(persons: Persons, face: str) -> set[Face]:
    """Return the unsure face with an id, as a set, empty where none has it; raises UserError for several."""
    found = {*faces_of(persons.faces.filter(pc.field("person").is_null() & (pc.field("id") == face)))}
    if len(found) > 1:
        raise UserError(
            f"{len(found)} outputs of the index have an unsure face {face}; nothing was changed\n"
            "  what to do: give cnnbatch group with a lower --similarity"
        )
    return found


def _shown(pairs: Sequence[tuple[Face, Face]]) -> str:
    shown = "; ".join(f"{one[1]} and {other[1]}" for one, other in pairs[:_NAMED])
    return shown if len(pairs) <= _NAMED else f"{shown}; and {len(pairs) - _NAMED:,} more"


def _renumbered(index: Index, persons: Persons, numbers: Ints) -> Persons:
    """Return the persons with other numbers, and what follows from these, without faces that are gone."""
    ordered = FacesInOrder.of(index.copy())
    places = {face: place for place, face in enumerate(faces_of(persons.faces))}
    there = [places.get(face, NOBODY) for face in faces_of(ordered.table)]
    now = np.append(numbers, NOBODY)[there]
    return with_persons(index.copy(), ordered.rows, ordered.table, now, persons.said)


def _named(persons: Persons, own: pa.Table, number: int, faces: Sequence[str]) -> NDArray[np.bool_]:
    if missing := sorted({*faces} - {*map(str, own["id"].to_pylist())}):
        raise UserError(
            f"{persons.title(number)} has no face {missing[0]}\n"
            "  what to do: take the faces from cnnbatch persons INDEX --to FILE"
        )
    return np.asarray(pc.is_in(own["id"], pa.array([*faces])).to_numpy())


def _by_linkage(index: Index, persons: Persons, own: pa.Table, rows: Ints) -> NDArray[np.bool_]:
    """Return which faces of a person, in ``rows`` (N,) of the index, are in the second half."""
    within = {face: place for place, face in enumerate(faces_of(own))}
    together = [[within[face] for face in one if face in within] for one in persons.said.together]
    return halves(index.copy().vectors, rows, [one for one in together if one])


def _why_whole(own: pa.Table, second: NDArray[np.bool_]) -> str:
    if own.num_rows == 1:
        return "there is one face"
    return "all faces are in the second half" if second.all() else "all faces were said to be of one person"
