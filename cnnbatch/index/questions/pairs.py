"""Pairs of pictures to be compared, and of each picture the embedding that counts, mapped from a file."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.config.output import Which
from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import by_ends
from cnnbatch.evaluation.face_lists import FacePairList, read_face_list
from cnnbatch.index.embeddings import EmbeddedOutput, flat_embeddings
from cnnbatch.index.originals import CORNERS
from cnnbatch.index.questions.part import read_part
from cnnbatch.output.chosen_faces import chosen_faces
from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, redact
from cnnbatch.storage.text import LongLine, text_lines
from cnnbatch.truth import BOX

_LONGEST = 1 << 16  # bytes of a line
_NAMES = ("a", "b")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of files; ``known`` also says which are of one person, where the list does."""

    first: Sequence[str]
    second: Sequence[str]
    known: FacePairList | None = None

    def files(self) -> dict[str, int]:
        """Return all files, each once, with a number from 0."""
        return {file: number for number, file in enumerate(dict.fromkeys([*self.first, *self.second]))}


def read_pairs(uri: str, storage: Storage) -> Pairs:
    """Return the pairs of a CSV file with the columns a and b, and perhaps same.

    Raises UserError for any other file.
    """
    known = read_face_list(uri, storage)
    if isinstance(known, FacePairList):
        return Pairs(known.first, known.second, known)
    try:
        with storage.open(uri) as file:
            pairs = [*_pairs(uri, csv.DictReader(text_lines(file, _LONGEST)))]
    except (NotFound, Forbidden, Unreadable, UnicodeDecodeError, LongLine, csv.Error) as error:
        raise UserError(f"verify.pairs: {redact(uri)} can't be read as a CSV file: {error}") from error
    if not pairs:
        raise UserError(
            f"verify.pairs: {redact(uri)} has no pair\n  what to do: write one a line, as a.jpg,b.jpg"
        )
    return Pairs([one for one, _ in pairs], [other for _, other in pairs])


def _pairs(uri: str, rows: csv.DictReader[str]) -> Iterator[tuple[str, str]]:
    names = rows.fieldnames or ()
    if not {*names} >= {*_NAMES}:
        raise UserError(
            f"verify.pairs: expected a CSV file with the columns a and b; {redact(uri)} has "
            f"{', '.join(names) or 'none'}"
        )
    yield from (_pair(uri, number, row) for number, row in enumerate(rows, 2))


def _pair(uri: str, number: int, row: Mapping[str, str | None]) -> tuple[str, str]:
    one, other = ((row.get(name) or "").strip() for name in _NAMES)
    if not (one and other):
        raise UserError(f"{redact(uri)}, line {number}: expected a file in each of the columns a and b")
    return one, other


@dataclass(frozen=True, slots=True)
class PairedFaces:
    """Of each file of some pairs the face that counts: its vector (F, D), mapped; its id; its box (F, 4).

    A box is (x1, y1, x2, y2) in pixels, NaN of whole pictures, and of files without a face.
    ``problems`` says of files without one why: ``not_found`` in the collection, ``no_face`` in the picture.
    """

    vectors: NDArray[np.float16]
    ids: Sequence[str | None]
    boxes: NDArray[np.float32]
    problems: Sequence[str | None]


def boxes_of(corners: NDArray[np.float32]) -> pa.Array[Any]:
    """Return boxes (N, 4) as a column, null where they are NaN."""
    columns = [pa.array(corners[:, place]) for place in range(len(CORNERS))]
    mask: Any = pa.array(np.isnan(corners[:, 0]))
    found: pa.Array[Any] = pa.StructArray.from_arrays(columns, [*CORNERS], mask=mask).cast(BOX)
    return found


@contextmanager
def paired_faces(
    embedded: EmbeddedOutput, parts: Sequence[int], files: Mapping[str, int], which: Which
) -> Iterator[PairedFaces]:
    """Give the faces of ``files``, which are named by keys or by longer paths that end with these."""
    ends = by_ends({file: [number] for file, number in files.items()})
    boxes = np.full((len(files), len(CORNERS)), np.nan, np.float32)
    found = _Found([None] * len(files), boxes, ["not_found"] * len(files))
    with tempfile.TemporaryDirectory(prefix="cnnbatch-pairs-") as folder:
        shape = (len(files), embedded.space.dimensions)
        vectors = np.memmap(Path(folder) / "vectors", np.float16, "w+", shape=shape)
        for part in parts:
            _take(read_part(embedded, part), embedded, files, ends, which, vectors, found)
        yield PairedFaces(vectors, found.ids, found.boxes, found.problems)


@dataclass(frozen=True, slots=True)
class _Found:
    ids: list[str | None]
    boxes: NDArray[np.float32]
    problems: list[str | None]


def _take(
    table: pa.Table,
    embedded: EmbeddedOutput,
    files: Mapping[str, int],
    ends: Mapping[str, list[int]],
    which: Which,
    vectors: NDArray[np.float16],
    found: _Found,
) -> None:
    """Take from a part what it has of the files."""
    keys: list[Any] = table["key"].to_pylist()
    flat = flat_embeddings(table, embedded.column, embedded.space.dimensions)
    places = zip(flat.parents.tolist(), flat.places.tolist(), strict=True)
    place = {where: number for number, where in enumerate(places)}
    for row, key in enumerate(keys):
        numbers = [*([files[key]] if key in files else []), *ends.get(key, ())]
        face = _face(table, row, embedded, which) if numbers else None
        at = None if face is None else place.get((row, face))
        for number in numbers:
            found.problems[number] = "no_face" if at is None else None
            if at is not None:
                vectors[number] = flat.vectors[at]
                found.ids[number] = f"{key}#{face}" if embedded.column == "objects" else key
                found.boxes[number] = [*(flat.boxes[at].as_py() or {}).values()] or np.nan


def _face(table: pa.Table, row: int, embedded: EmbeddedOutput, which: Which) -> int | None:
    """Return the number of the face of a row that counts; None without any, or where the picture is gone."""
    if table["vanished"][row].as_py():
        return None
    if embedded.column == "embedding":
        return 0
    wanted = ["objects", "width", "height"]
    chosen = chosen_faces(table.select(wanted).slice(row, 1).to_pylist()[0], which)
    return chosen[0][0] if chosen else None
