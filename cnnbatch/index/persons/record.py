"""Who is who in an index: one object that the manifest names, as immutable as a segment.

It holds a row a face, and what people said. Faces are named by their output and id, which stay as they are
when segments are written anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.index import segments
from cnnbatch.index.build import put_new
from cnnbatch.index.manifest import Manifest, StoredObject, persons_uri
from cnnbatch.index.objects import read_object
from cnnbatch.index.persons.grouping import NOBODY
from cnnbatch.storage import Storage

Face = tuple[int, str]
"""The number of a face's output in the manifest, and its id."""

Faces = tuple[Face, ...]

_FIELDS: list[pa.Field[Any]] = [
    pa.field("output", pa.int32(), nullable=False),
    pa.field("id", pa.string(), nullable=False),
    pa.field("person", pa.int32()),
    pa.field("similarity", pa.float32()),
]
FACES = pa.schema(_FIELDS)
"""``person`` is null of a face that is unsure. ``similarity`` is the mean cosine with the other faces of its
person, null where there are none."""


class Spoken(BaseModel):
    """What people said, and by what faces were grouped.

    ``names`` are those of persons. ``together`` are faces of one person each, and of each of ``apart`` no
    face of the first is of one person with any of the second. ``following`` is the number that the next new
    person gets: none is given twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    following: int = 0
    names: dict[int, str] = {}
    together: tuple[Faces, ...] = ()
    apart: tuple[tuple[Faces, Faces], ...] = ()
    join: float
    unsure: float

    def with_name(self, person: int, name: str | None) -> Spoken:
        """Return it with another name of a person; None: with none."""
        others = {number: one for number, one in self.names.items() if number != person}
        return self.model_copy(update={"names": others if name is None else {**others, person: name}})

    def faces(self) -> Iterator[Face]:
        """Yield the faces of which something was said."""
        for some in (*self.together, *chain.from_iterable(self.apart)):
            yield from some

    def without(self, faces: Collection[Face]) -> Spoken:
        """Return it with nothing said of these faces."""
        together = [_others(one, faces) for one in self.together]
        apart = [(_others(one, faces), _others(other, faces)) for one, other in self.apart]
        return self.model_copy(
            update={
                "together": tuple(one for one in together if len(one) > 1),
                "apart": tuple((one, other) for one, other in apart if one and other),
            }
        )


@dataclass(frozen=True)
class Persons:
    """``faces``, a table of `FACES` sorted by output and id, and what was ``said``."""

    faces: pa.Table
    said: Spoken

    def sizes(self) -> dict[int, int]:
        """Return how many faces each person has, by number."""
        numbers, counts = np.unique(self.faces["person"].drop_null().to_numpy(), return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def numbers(self) -> NDArray[np.int64]:
        """Return the person of each face (N,), `NOBODY` of one that is unsure."""
        found: Any = self.faces["person"]
        return np.array(found.fill_null(NOBODY).to_numpy(), np.int64)

    def of(self, person: int) -> pa.Table:
        """Return the faces of a person."""
        return self.faces.filter(pc.field("person") == person)

    def number(self, text: str) -> int:
        """Return the number of the person whom ``text`` means, a number or a name; raises UserError."""
        named = {name: number for number, name in self.said.names.items()}
        if text in named:
            return named[text]
        sizes = self.sizes()
        if text.isdecimal() and int(text) in sizes:
            return int(text)
        near = nearest(text, [*named])
        meant = f"; did you mean {near}" if near else ""
        raise UserError(
            f"expected the number or the name of a person, got {text!r}{meant}\n"
            "  what to do: list the persons with cnnbatch persons INDEX"
        )

    def title(self, person: int) -> str:
        """Return how a person is called: the number, and the name where there is one."""
        name = self.said.names.get(person)
        return f"person {person}" if name is None else f"person {person} ({name})"


def _others(faces: Faces, left_out: Collection[Face]) -> Faces:
    return tuple(face for face in faces if face not in left_out)


def faces_of(table: pa.Table) -> Iterable[Face]:
    """Return the faces of a table with the columns ``output`` and ``id``."""
    return zip(table["output"].to_numpy().tolist(), map(str, table["id"].to_pylist()), strict=True)


def read_persons(index: str, storage: Storage, manifest: Manifest) -> Persons | None:
    """Return who is who in an index; None where nobody has grouped it. Raises DamagedObject."""
    stored = manifest.persons
    if stored is None:
        return None
    table = segments.read(read_object(persons_uri(index, stored.name), storage, stored))
    said: dict[str, Any] = segments.about(table)
    return Persons(table.replace_schema_metadata(None), Spoken.model_validate(said))


def put_persons(index: str, storage: Storage, persons: Persons) -> StoredObject:
    """Put who is who as a new object; a manifest has to name it."""
    data = segments.written(segments.saying(persons.faces, persons.said.model_dump(mode="json")))
    total = segments.checksum(data)
    put_new(storage, persons_uri(index, total[:32]), data)
    return StoredObject(name=total[:32], sha256=total, bytes=len(data))
