"""Whose faces an index knows by name: those of persons whom people named, else by its own names."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.index.gallery import Gallery, gallery_of_index
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.named_pictures import people_of
from cnnbatch.index.persons.group import FacesInOrder
from cnnbatch.index.persons.grouping import NOBODY, Ints
from cnnbatch.index.persons.record import Persons, read_persons
from cnnbatch.index.search import Index
from cnnbatch.storage import redact

PERSONS = "persons"
"""In place of a column: people are the persons of the index who have a name."""


def gallery_of_names(
    index: Index, copy: LocalCopy, people: str | None, rows: Ints, option: str = "--people"
) -> Gallery:
    """Return those of some ``rows`` (N,) of an index, ascending, whose people it knows.

    ``people`` are `PERSONS`, a column that it keeps, or `FOLDER`. None: the persons, where one has a name, or
    what `people_of` says. Raises UserError for another column, and for `PERSONS` of whom none has a name.
    """
    asks_persons = people == PERSONS and PERSONS not in index.manifest.kept
    persons = read_persons(index.uri, index.storage, index.manifest) if asks_persons or not people else None
    if persons is not None and persons.said.names:
        return gallery_of_persons(copy, persons, rows)
    if asks_persons:
        raise UserError(
            f"{option}: no person of {redact(index.uri)} has a name\n"
            "  what to do: give cnnbatch group INDEX, then cnnbatch persons INDEX --name PERSON NAME"
        )
    return gallery_of_index(copy, people_of(index.manifest, people, option), rows)


def gallery_of_persons(copy: LocalCopy, persons: Persons, rows: Ints) -> Gallery:
    """Return all faces of the persons who have a name, of those in ``rows`` (N,), ascending."""
    numbers = sorted(persons.said.names)
    code = np.full(max([0, *numbers, *persons.sizes()]) + 2, NOBODY)  # The last is that of `NOBODY`.
    code[numbers] = np.arange(len(numbers))
    people = code[persons.numbers()]
    named = people != NOBODY
    found = FacesInOrder.of(copy).rows_of(persons.faces.filter(pa.array(named)))
    people = people[named][np.isin(found, rows)]
    found = found[np.isin(found, rows)]
    order = np.argsort(found)
    return Gallery(
        copy.vectors,
        found[order],
        people[order].astype(np.int32),
        [persons.said.names[number] for number in numbers],
        lambda chosen: [*map(str, copy.rows(chosen)["id"].to_pylist())],
    )
