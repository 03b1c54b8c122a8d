"""Pictures of an index whose person is known: of each the face that counts, and who it is."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.index.by_size import NOBODY
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.manifest import Manifest
from cnnbatch.metrics.intervals import key_hashes

FOLDER = "folder"
"""In place of a column: people are the folders that their pictures lie in."""


@dataclass(frozen=True)
class NamedPictures:
    """Pictures: of each the row of its face, int64 (N,), its key, and its person's name, None for none."""

    rows: NDArray[np.int64]
    keys: Sequence[str]
    names: Sequence[str | None]

    @cached_property
    def people(self) -> NDArray[np.uint64]:
        """The hashes of the people (N,), `NOBODY` for none."""
        return hashes_of(self.names)

    def named(self) -> NamedPictures:
        """Return those whose person is known."""
        places = [place for place, name in enumerate(self.names) if name]
        return NamedPictures(
            self.rows[places],
            [self.keys[place] for place in places],
            [self.names[place] for place in places],
        )


def named_pictures(copy: LocalCopy, kept: Sequence[str], people: str | None) -> NamedPictures:
    """Return the pictures of an index; ``people`` is a column that it keeps, or `FOLDER`; None: no names.

    Of several faces of a picture the largest is its person's. Raises UserError for another column.
    """
    require_people(people, kept, "--people")
    columns = [people] if people is not None and people != FOLDER else []
    table = copy.columns(["key", "box", *columns]).take(copy.live)
    largest = largest_faces(table["key"], table["box"])
    found = table.take(largest)
    keys = [*map(str, found["key"].to_pylist())]
    names: Sequence[str | None] = [None] * len(keys)
    if people == FOLDER:
        names = [folder or None for folder in folders_of(keys)]
    elif columns:
        names = [None if value is None else str(value) for value in found[columns[0]].to_pylist()]
    return NamedPictures(copy.live[largest], keys, names)


def people_of(manifest: Manifest, people: str | None, option: str = "--people") -> str:
    """Return whose names an index has: ``people``, else ``index.people`` of its build, else `FOLDER`.

    Raises UserError for a column that it does not keep.
    """
    require_people(people, [*manifest.kept], option)
    return people or manifest.people or FOLDER


def require_people(people: str | None, kept: Sequence[str], option: str) -> None:
    """Insist on a column that an index keeps, `FOLDER`, or nothing; raises UserError for an option."""
    if people not in (None, FOLDER, *kept):
        near = nearest(str(people), [FOLDER, *kept])
        raise UserError(
            f"{option}: the index keeps no column {people!r}{f', but {near}' if near else ''}\n"
            f"  what to do: give {FOLDER}, or one of its columns: {', '.join(kept) or 'it keeps none'}"
        )


def largest_faces(keys: Any, boxes: Any) -> NDArray[np.int64]:
    """Return of each picture, by its key, the row of the largest box, ascending; whole pictures have none."""
    numbers = np.asarray(pc.dictionary_encode(keys.combine_chunks()).indices, np.int64)
    corners = {name: pc.struct_field(boxes.combine_chunks(), name) for name in ("x1", "y1", "x2", "y2")}
    width, height = pc.subtract(corners["x2"], corners["x1"]), pc.subtract(corners["y2"], corners["y1"])
    areas = np.asarray(pc.fill_null(pc.multiply(width, height), 0.0), np.float64)
    order = np.lexsort((np.arange(len(numbers)), -areas, numbers))
    first = np.append(True, np.diff(numbers[order]) != 0)[: len(order)]
    return np.sort(order[first])


def hashes_of(names: Sequence[str | None]) -> NDArray[np.uint64]:
    """Return the hashes of people's names (N,), `NOBODY` for none."""
    known = sorted({name for name in names if name})
    hashes = dict(zip(known, key_hashes(known).tolist(), strict=True))
    return np.array([hashes[name] if name else NOBODY for name in names], np.uint64)


def folders_of(keys: Sequence[str]) -> list[str]:
    """Return the folder of each key; empty where it lies in none."""
    return [posixpath.dirname(key) for key in keys]
