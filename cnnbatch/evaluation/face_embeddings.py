"""The embeddings of the faces that are judged: of each listed picture one face, or all of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.config.output import Which
from cnnbatch.errors import UserError
from cnnbatch.metrics.embeddings import lengths, similarities
from cnnbatch.output.chosen_faces import chosen_faces
from cnnbatch.output.embeddings import Metric, embedding_of_objects, space_of
from cnnbatch.output.reader import Reader
from cnnbatch.storage import join, normalize, redact

_SHOWN = 5
_PAIRS = 4096  # compared at once

Vectors = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ListedFaces:
    """The faces of listed pictures: those of the i-th are ``vectors[ends[i]:ends[i + 1]]``, (F, D) in all.

    ``numbers`` (F,) say which face of its picture each is, from left to right. ``metric`` is the distance by
    which they are compared. ``rows`` (N,) are the pictures' places in the output.
    """

    vectors: Vectors
    numbers: NDArray[np.int32]
    ends: NDArray[np.int64]
    metric: Metric
    rows: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many faces each picture has."""
        return np.diff(self.ends)

    def similarities(self, one: Vectors, other: Vectors) -> NDArray[np.float64]:
        """Return how alike embeddings (M, D) and (N, D) are, (M, N): the cosine, or minus the distance."""
        return similarities(one, other, self.metric)

    def paired(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how alike the faces at places (N,) are to those at others (N,), one by one, (N,)."""
        found = [
            self._alike(self.vectors[first[some]], self.vectors[second[some]]) for some in _blocks(len(first))
        ]
        return np.concatenate([np.zeros(0), *found])

    def _alike(self, one: Vectors, other: Vectors) -> NDArray[np.float64]:
        if self.metric == "cosine":
            scale = (lengths(one) * lengths(other))[:, 0]
            cosines: NDArray[np.float64] = np.einsum("nd,nd->n", one, other, dtype=np.float64) / scale
            return cosines
        distances: NDArray[np.float64] = np.linalg.norm(one.astype(np.float64) - other, axis=1)
        return -distances


def _blocks(count: int) -> list[slice]:
    """Return the pairs in blocks, so that memory does not grow with their number."""
    return [slice(start, start + _PAIRS) for start in range(0, count, _PAIRS)]


def has_embeddings(schema: pa.Schema) -> bool:
    """Say whether rows of these columns have embeddings: of their objects, or of themselves."""
    return _embedding(schema) is not None


def listed_faces(result: Reader, files: Sequence[str], where: str, which: Which) -> ListedFaces:
    """Return the faces of ``files``, in their order; a picture without one has none.

    A file is a key of the output, or lies at that place below the folder of the list, whose address is
    ``where``, or its path ends with the key. Raises UserError where one is none of these.
    """
    places = _places(result, files, where)
    found: dict[int, tuple[Vectors, list[int]]] = {}
    columns = [name for name in ("objects", "embedding", "width", "height") if name in result.schema.names]
    row = 0
    for batch in result.batches(columns):
        wanted = [number for number in range(batch.num_rows) if row + number in places]
        for number, values in zip(wanted, batch.take(pa.array(wanted, pa.int64())).to_pylist(), strict=True):
            chosen = _vectors(values, which)
            vectors = np.array([vector for _, vector in chosen], np.float32)
            for place in places[row + number]:
                found[place] = vectors, [face for face, _ in chosen]
        row += batch.num_rows
    ordered = [found[place] for place in range(len(files))]
    sizes = [len(faces) for _, faces in ordered]
    filled = [one for one, faces in ordered if faces]
    field = _embedding(result.schema)
    space = None if field is None else space_of(field)
    return ListedFaces(
        np.concatenate(filled) if filled else np.zeros((0, 1), np.float32),
        np.array([face for _, faces in ordered for face in faces], np.int32),
        np.cumsum([0, *sizes]),
        "cosine" if space is None else space.metric,
        np.array([row for _, row in sorted((place, row) for row, some in places.items() for place in some)]),
    )


def _embedding(schema: pa.Schema) -> pa.Field[Any] | None:
    of_objects = embedding_of_objects(schema)
    if of_objects is not None:
        return of_objects
    return schema.field("embedding") if "embedding" in schema.names else None


def _places(result: Reader, files: Sequence[str], where: str) -> dict[int, list[int]]:
    """Return of each row of the output that is listed its places in the list.

    A file is the row with that key, else the one at that address, else the one whose key its path ends with.
    """
    by_name: dict[str, list[int]] = {}
    for place, file in enumerate(files):
        by_name.setdefault(file, []).append(place)
    folder, ends = posixpath.dirname(normalize(where)), by_ends(by_name)
    by_address = {join(folder, file): found for file, found in by_name.items()}
    places: dict[int, list[int]] = {}
    for row, (key, uri) in enumerate(_keys(result)):
        if found := by_name.get(key) or by_address.get(uri) or ends.get(key):
            places[row] = found
    lacking = {*range(len(files))} - {place for some in places.values() for place in some}
    if lacking:
        raise UserError(
            f"truth: expected pictures of {redact(result.uri)}, but {len(lacking):,} of {len(files):,} are "
            f"not in it, as {', '.join(files[place] for place in sorted(lacking)[:_SHOWN])}\n"
            "  what to do: name them as the output's keys do, or relative to the folder of the list; leave "
            "out those that were not predicted"
        )
    return places


def by_ends(by_name: Mapping[str, list[T]]) -> dict[str, list[T]]:
    """Return what is known of files by what their paths end with, where that tells one from all others."""
    found: dict[str, list[T]] = {}
    for name, places in by_name.items():
        parts = name.split("/")
        for first in range(1, len(parts)):
            end = "/".join(parts[first:])
            found[end] = [] if end in found else places
    return found


def _keys(result: Reader) -> Iterator[tuple[str, str]]:
    for batch in result.batches(["key", "uri"]):
        yield from zip(batch["key"].to_pylist(), batch["uri"].to_pylist(), strict=True)


def _vectors(row: dict[str, Any], which: Which) -> list[tuple[int, list[float]]]:
    """Return the embeddings of a row that count, each with its number; none of a row without faces."""
    if "objects" not in row:
        return [] if row["embedding"] is None else [(0, row["embedding"])]
    return [(number, face["embedding"]) for number, face in chosen_faces(row, which)]
