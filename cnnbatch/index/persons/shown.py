"""Persons as the report of an index shows them: who they are, and what is most likely wrong of it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from cnnbatch.humanize import counted, number
from cnnbatch.index.originals import Originals
from cnnbatch.index.persons.doubts import Doubt, GroupedFaces
from cnnbatch.index.persons.grouping import Ints
from cnnbatch.index.persons.record import Persons, read_persons
from cnnbatch.index.search import Index
from cnnbatch.index.shown_pairs import ShownFace
from cnnbatch.report.facts import Fact
from cnnbatch.report.pictures import JPEG_QUALITY, jpeg_uri
from cnnbatch.storage import Allowed, redact

LARGEST, NAMED, FACES, DOUBTS = 24, 48, 6, 12
"""How many persons without and with a name are shown, faces of each, and doubts of each kind."""

_SIDE = 144  # Pixels of a face's longer side.
_NEAREST = 2  # Persons beside an unsure face.


@dataclass(frozen=True, slots=True)
class ShownFaces:
    """Faces beside each other, what they are, and the words of the command that corrects it."""

    title: str
    words: str
    faces: Sequence[ShownFace]
    command: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ShownPersons:
    """What is shown of a grouping; ``more`` says how many persons are not, ``problems`` what can't be."""

    fact: Fact
    lead: str
    persons: Sequence[ShownFaces]
    more: str
    doubts: Sequence[tuple[str, str, Sequence[ShownFaces]]]
    """A title, what it is, and the faces."""
    problems: Sequence[str]


def shown_persons(index: Index, allow: Collection[Allowed] = ()) -> ShownPersons | None:
    """Return the persons of an index, those with names and the largest; None where nobody has grouped it.

    What lies beyond an index that others may have written is shown as far as ``allow`` says.
    """
    persons = read_persons(index.uri, index.storage, index.manifest)
    if persons is None:
        return None
    originals = Originals(index.uri, index.storage, allow)
    showing = _Showing(index, persons, originals)
    people, doubts = [*showing.people()], [*showing.doubts()]
    return ShownPersons(
        Fact("Persons", number(len(persons.sizes())), _named(persons)),
        _lead(persons, len(index)),
        people,
        _more(persons, len(people), index),
        [one for one in doubts if one[2]],
        [*originals.problems()],
    )


class _Showing:
    """Makes crops of the faces that are shown, each once."""

    def __init__(self, index: Index, persons: Persons, originals: Originals) -> None:
        self._persons, self._index = persons, index
        self._faces = GroupedFaces(index.copy(), persons)

        @cache
        def face(row: int) -> ShownFace:
            [found] = index.addressed(index.copy().rows(np.array([row]))).to_pylist()
            crop = originals.crop(found, _SIDE)
            return ShownFace(found["id"], "" if crop is None else jpeg_uri(crop, JPEG_QUALITY))

        self._face = face

    def people(self) -> Iterator[ShownFaces]:
        """Yield the persons who are shown, those with most faces first."""
        sizes = self._persons.sizes()
        order = sorted(self._faces.typical_first, key=lambda one: (-sizes[one], one))
        named = [one for one in order if one in self._persons.said.names][:NAMED]
        others = [one for one in order if one not in self._persons.said.names and sizes[one] > 1][:LARGEST]
        for person in sorted([*named, *others], key=order.index):
            places = self._faces.typical_first[person]
            faces = [self._face(int(self._faces.rows[place])) for place in _spread(places, FACES)]
            yield ShownFaces(self._title(person), self._about(person, places), faces)

    def doubts(self) -> Iterator[tuple[str, str, Sequence[ShownFaces]]]:
        """Yield each kind of doubt with its title, what it is, and the faces."""
        yield (
            "Perhaps one person",
            "Two persons each, the most similar first, by the two faces of them that are most similar.",
            [self._closest(one) for one in islice(_each_once(self._faces.closest()), DOUBTS)],
        )
        yield (
            "Perhaps somebody else",
            "Of a person the face that is least similar to the others, beside the most typical one.",
            [self._weakest(one) for one in islice(self._faces.weakest(), DOUBTS)],
        )
        yield (
            "Unsure faces",
            "Faces that are of nobody yet, each beside the persons to whom it is most similar.",
            [self._unsure(doubts) for doubts in islice(self._faces.unsure(_NEAREST), DOUBTS)],
        )

    def _closest(self, doubt: Doubt) -> ShownFaces:
        faces = [
            self._labelled(row, self._title(person))
            for row, person in zip(doubt.rows, (doubt.one, doubt.other), strict=True)
        ]
        words = f"mean similarity {doubt.similarity:.4f}"
        return ShownFaces("", words, faces, self._command("--merge", str(doubt.one), str(doubt.other)))

    def _weakest(self, doubt: Doubt) -> ShownFaces:
        face, typical = map(self._face, doubt.rows)
        words = f"mean similarity {doubt.similarity:.4f} to the others"
        command = self._command("--split", str(doubt.one), "--faces", face.id)
        return ShownFaces(self._title(doubt.one), words, [face, typical], command)

    def _unsure(self, doubts: Sequence[Doubt]) -> ShownFaces:
        first = doubts[0]
        face = self._labelled(first.rows[0], "unsure")
        persons = [
            self._labelled(one.rows[1], f"{self._title(one.other)}, {one.similarity:.4f}") for one in doubts
        ]
        command = self._command("--merge", str(first.other), face.id)
        return ShownFaces("", f"mean similarity {first.similarity:.4f}", [face, *persons], command)

    def _labelled(self, row: int, words: str) -> ShownFace:
        face = self._face(row)
        return ShownFace(face.id, face.uri, words)

    def _title(self, person: int) -> str:
        return self._persons.said.names.get(person) or f"person {person}"

    def _about(self, person: int, places: Ints) -> str:
        near = self._faces.near[places]
        similar = "" if np.isnan(near).any() else f", similarity {near.min():.4f} to {near.max():.4f}"
        called = f"person {person}, " if person in self._persons.said.names else ""
        return f"{called}{counted(len(places), 'face')}{similar}"

    def _command(self, *words: str) -> list[str]:
        return [shlex.quote(one) for one in ("cnnbatch", "persons", redact(self._index.uri), *words)]


def _spread(places: Ints, most: int) -> list[int]:
    """Return at most so many of some places, at equal distances, the first and the last among them."""
    return [int(places[one]) for one in np.unique(np.linspace(0, len(places) - 1, most).astype(np.int64))]


def _each_once(doubts: Iterable[Doubt]) -> Iterator[Doubt]:
    """Yield the first doubt of each two persons of whom neither came before."""
    seen: set[int] = set()
    for doubt in doubts:
        if seen.isdisjoint((doubt.one, doubt.other)):
            seen |= {doubt.one, doubt.other}
            yield doubt


def _named(persons: Persons) -> str:
    return f"{number(len(persons.said.names))} named" if persons.said.names else ""


def _lead(persons: Persons, rows: int) -> str:
    sizes = persons.sizes()
    alone = sum(size == 1 for size in sizes.values())
    unsure = counted(persons.faces["person"].null_count, "unsure face")
    text = (
        f"{counted(sum(sizes.values()), 'face')} of {counted(len(sizes), 'person')}, of whom {number(alone)} "
        f"have one face, and {unsure}. A face joins a person from a mean cosine of {persons.said.join:.4f}, "
        f"and is unsure from {persons.said.unsure:.4f}."
    )
    new = rows - persons.faces.num_rows
    return f"{text} {counted(new, 'face')} came since: cnnbatch group takes them in." if new > 0 else text


def _more(persons: Persons, shown: int, index: Index) -> str:
    more = len(persons.sizes()) - shown
    command = f"cnnbatch persons {redact(index.uri)}"
    return f"{counted(more, 'person')} more: {command} lists all." if more else ""
