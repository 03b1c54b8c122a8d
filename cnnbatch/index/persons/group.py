"""``cnnbatch group``: faces that are new to an index join its persons, found one, or stay unsure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.humanize import counted
from cnnbatch.index.calibrated import read_calibrated
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.persons.changing import change
from cnnbatch.index.persons.grouping import NOBODY, Ints, Said, group_faces
from cnnbatch.index.persons.record import FACES, Face, Faces, Persons, Spoken, faces_of, read_persons
from cnnbatch.index.search import Index
from cnnbatch.storage import Storage, redact

JOIN_RATE, UNSURE_RATE = 1e-4, 1e-3
"""The false accept rates whose similarities are taken where none is given."""

_BLOCK = 8_192  # faces whose vectors are float32 at once


@dataclass(frozen=True, slots=True)
class Grouped:
    """Who is who now, how many faces were ``new``, and how many persons there were before."""

    persons: Persons
    new: int
    before: int


@dataclass(frozen=True)
class FacesInOrder:
    """The faces of an index, sorted by output and id: the row of each in the copy, and its place by name."""

    rows: Ints
    table: pa.Table

    @classmethod
    def of(cls, copy: LocalCopy) -> FacesInOrder:
        """Return the live faces of an index."""
        table = copy.columns(["output", "id"]).take(copy.live)
        table = table.append_column("row", pa.array(copy.live))
        table = table.sort_by([("output", "ascending"), ("id", "ascending")])
        return cls(table["row"].to_numpy(), table.drop_columns(["row"]))

    def places(self) -> dict[Face, int]:
        """Return the place of each face."""
        return {face: place for place, face in enumerate(faces_of(self.table))}

    def rows_of(self, faces: pa.Table) -> Ints:
        """Return the row of each of some faces (N,), `NOBODY` of one that is gone."""
        places, rows = self.places(), np.append(self.rows, NOBODY)
        return np.asarray(rows[[places.get(face, NOBODY) for face in faces_of(faces)]], np.int64)


def group(
    uri: str,
    join: float | None = None,
    unsure: float | None = None,
    anew: bool = False,
    storage: Storage | None = None,
) -> Grouped:
    """Group the faces of the index at ``uri`` that are of nobody yet; with ``anew`` all of them.

    A face joins a person, and two faces found one, where the mean cosine with the faces there is at least
    ``join``; one that is below it and at least ``unsure`` stays unsure. Both are those of the last grouping
    where they are None, else what was calibrated. What people said holds in any case. Raises UserError.
    """
    done: list[tuple[int, int]] = []

    def to(index: Index, before: Persons | None) -> Persons:
        said = _spoken(index, before, join, unsure)
        faces = FacesInOrder.of(index.copy())
        places = faces.places()
        earlier = _earlier(faces, places, before)
        after = _grouped(index.copy(), faces, places, earlier, said, anew)
        done.append((int((earlier == NOBODY).sum()), len(before.sizes()) if before else 0))
        return after

    after = change(uri, to, storage)
    return Grouped(after, *done[-1])


def similarity_of(index: Index, join: float | None) -> float:
    """Return the similarity at which a grouping would join faces; raises UserError where none is known."""
    before = read_persons(index.uri, index.storage, index.manifest)
    return _spoken(index, before, join, None).join


def lines(found: Grouped) -> Iterator[str]:
    """Yield what was done, for people."""
    sizes, faces = found.persons.sizes(), found.persons.faces
    unsure, alone = faces["person"].null_count, sum(size == 1 for size in sizes.values())
    yield f"{counted(faces.num_rows, 'face')}, {found.new:,} of them new to this"
    yield f"  {counted(len(sizes), 'person')}, of whom {alone:,} have one face; {found.before:,} before"
    said = found.persons.said
    yield f"  {counted(unsure, 'face')} unsure: a cosine between {said.unsure:.4f} and {said.join:.4f}"


def _spoken(index: Index, before: Persons | None, join: float | None, unsure: float | None) -> Spoken:
    """Return what people said, with the similarities that are to be used."""
    said = before.said if before else None
    if said is None and join is None:
        join, calibrated = _calibrated(index)
        unsure = calibrated if unsure is None else unsure
    join = join if join is not None else said.join if said else 0.0
    kept = said.unsure if said and said.unsure <= join else join
    unsure = kept if unsure is None else unsure
    if not -1 <= unsure <= join <= 1:
        raise UserError(
            f"expected cosines between -1 and 1, that of --unsure at most that of --similarity, got "
            f"{unsure:g} and {join:g}\n  what to do: give a lower --unsure, or leave it out"
        )
    return (said or Spoken(join=join, unsure=unsure)).model_copy(update={"join": join, "unsure": unsure})


def _calibrated(index: Index) -> tuple[float, float]:
    """Return the similarities at the two rates; raises UserError where they were not measured."""
    found = read_calibrated(index.uri, index.storage, index.manifest.space)
    join = None if found is None else found.pairs.threshold(JOIN_RATE).similarity
    if found is None or join is None:
        raise UserError(
            f"how similar faces of one person are was not measured for {redact(index.uri)}\n"
            "  what to do: give cnnbatch calibrate first, or a cosine by --similarity"
        )
    unsure = found.pairs.threshold(UNSURE_RATE).similarity
    return join, join if unsure is None else unsure


def _earlier(faces: FacesInOrder, places: dict[Face, int], before: Persons | None) -> Ints:
    """Return the person that each face (N,) has had so far."""
    persons = np.full(len(faces.rows), NOBODY)
    if before is not None:
        known = before.faces.filter(before.faces["person"].is_valid())
        for face, person in zip(faces_of(known), known["person"].to_pylist(), strict=True):
            if face in places:
                persons[places[face]] = person
    return persons


def _grouped(
    copy: LocalCopy, faces: FacesInOrder, places: dict[Face, int], earlier: Ints, said: Spoken, anew: bool
) -> Persons:
    known = _present(said, places)
    persons = np.full_like(earlier, NOBODY) if anew else earlier
    group, unsure = group_faces(copy.vectors, faces.rows, persons, known, said.join, said.unsure)
    numbers, following = _numbered(group, unsure, earlier, said.following)
    return with_persons(
        copy, faces.rows, faces.table, numbers, said.model_copy(update={"following": following})
    )


def _present(said: Spoken, places: Mapping[Face, int]) -> Said:
    """Return what was said of the faces that there are, by their places."""

    def there(faces: Faces) -> tuple[int, ...]:
        return tuple(places[face] for face in faces if face in places)

    said = said.without({face for face in said.faces() if face not in places})
    return Said(
        tuple(there(one) for one in said.together),
        tuple((there(one), there(other)) for one, other in said.apart),
    )


def _numbered(group: Ints, unsure: Ints, earlier: Ints, following: int) -> tuple[Ints, int]:
    """Return the person of each face (N,), and the number that the next new person gets.

    A group is the person with whom it has most faces in common, of those that no other group has more of.
    The others are new, in the order of their first faces.
    """
    of_group = np.full(int(group.max()) + 1 if len(group) else 0, NOBODY)
    known = np.flatnonzero(earlier != NOBODY)
    pairs, counts = np.unique(np.stack([earlier[known], group[known]]), axis=1, return_counts=True)
    taken: set[int] = set()
    for place in np.argsort(-counts, kind="stable"):
        person, one = (int(number) for number in pairs[:, place])
        if of_group[one] == NOBODY and person not in taken:
            of_group[one] = person
            taken.add(person)
    of_nobody = of_group == NOBODY
    of_nobody[group[unsure]] = False
    new = [one for one in dict.fromkeys(group.tolist()) if of_nobody[one]]
    of_group[new] = np.arange(following, following + len(new))
    return of_group[group], following + len(new)


def with_persons(copy: LocalCopy, rows: Ints, faces: pa.Table, persons: Ints, said: Spoken) -> Persons:
    """Return who is who, where ``faces`` (their output and id), in ``rows`` (N,), are of ``persons`` (N,).

    The names of persons without faces go.
    """
    near = mean_similarities(copy, rows, persons)
    table = faces.select(["output", "id"])
    table = table.append_column("person", pa.array(persons, pa.int32(), mask=persons == NOBODY))
    table = table.append_column("similarity", pa.array(near, pa.float32(), from_pandas=True))
    there = {*np.unique(persons).tolist()}
    names = {number: name for number, name in said.names.items() if number in there}
    return Persons(table.cast(FACES).combine_chunks(), said.model_copy(update={"names": names}))


def mean_similarities(copy: LocalCopy, rows: Ints, persons: Ints) -> NDArray[np.float32]:
    """Return the mean cosine of each face (N,) with the others of its person; NaN where there are none."""
    found = np.full(len(rows), np.nan, np.float32)
    order = np.argsort(persons, kind="stable")
    order = order[persons[order] != NOBODY]
    for members in _runs(order, persons):
        vectors = np.asarray(copy.vectors[rows[members]], np.float32)
        own = np.einsum("nd,nd->n", vectors, vectors)
        if len(members) > 1:
            found[members] = (vectors @ vectors.sum(0) - own) / (len(members) - 1)
    return found


def _runs(order: Ints, persons: Ints) -> Sequence[Ints]:
    """Return the faces of each person."""
    return np.split(order, np.flatnonzero(np.diff(persons[order])) + 1) if len(order) else []
