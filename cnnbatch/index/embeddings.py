"""The embeddings of an output, part by part: what an index is made of.

An output has them in a column ``embedding``, one a picture, or in its ``objects``, one a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.index.manifest import etag_digest
from cnnbatch.index.segments import ROW
from cnnbatch.output import integrity
from cnnbatch.output.embeddings import EmbeddingSpace, embedding_of_objects, space_of
from cnnbatch.output.folder import PART, Output
from cnnbatch.output.reader import Reader, open_output
from cnnbatch.storage import NotFound, Storage, redact
from cnnbatch.truth import BOX

Place = Literal["embedding", "objects"]

NOT_FINITE = "embeddings with a number that is not finite"
ZERO = "embeddings of length zero"


@dataclass(frozen=True, slots=True)
class EmbeddedOutput:
    """An output with embeddings; small and picklable, for it travels to workers.

    ``number`` is its own among those of the index, ``column`` where the embeddings are, ``kept`` the columns
    that the index has of them.
    """

    number: int
    output: Output
    column: Place
    space: EmbeddingSpace
    kept: pa.Schema


@dataclass(frozen=True, slots=True)
class FlatEmbeddings:
    """The embeddings of a table's rows that are vectors, M of them, one after the other.

    ``parents`` (M,) are their rows, ``places`` (M,) their numbers within these, ``boxes`` (M,) null of whole
    pictures, ``vectors`` (M, D) of length 1. ``left_out`` counts by reason the embeddings that are none.
    """

    parents: NDArray[np.int64]
    places: NDArray[np.int64]
    boxes: Any
    vectors: NDArray[np.float16]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class EmbeddedRows:
    """Rows of `segments.ROW` with the kept columns, their vectors (N, D), and by reason what was left out."""

    rows: pa.Table
    vectors: NDArray[np.float16]
    left_out: dict[str, int]


def open_embedded(uri: str, storage: Storage, number: int, keep: Sequence[str] | None) -> EmbeddedOutput:
    """Return the output at ``uri`` as one with embeddings; ``keep``: what its own job kept of its input.

    Raises UserError where there are no embeddings, or not all columns.
    """
    reader = open_output(uri, storage)
    schema = _schema(reader)
    found = embedding_column(schema)
    if found is None:
        raise UserError(
            f"{redact(reader.uri)} has no embeddings; it has the columns {', '.join(schema.names)}\n"
            "  what to do: give an output of the job faces or embed, or of one with task.embedding=true"
        )
    names = _own(reader) if keep is None else keep
    kept = pa.schema([_kept(reader, schema, name) for name in names])
    return EmbeddedOutput(number, Output(reader.uri, storage), *found, kept)


def embedding_column(schema: pa.Schema) -> tuple[Place, EmbeddingSpace] | None:
    """Return where the embeddings are, and what they are; None where there are none."""
    if "embedding" in schema.names and (space := space_of(schema.field("embedding"))):
        return "embedding", space
    of_objects = embedding_of_objects(schema)
    space = None if of_objects is None else space_of(of_objects)
    return None if space is None else ("objects", space)


def parts_of(output: Output) -> dict[int, str]:
    """Return the number of every finished part, with a digest of its etag."""
    found: dict[int, str] = {}
    try:
        for entry in output.storage.list(output.path("predictions")):
            if match := PART.search(entry.uri):
                found[int(match[1])] = etag_digest(entry.etag, entry.size)
    except NotFound:
        pass
    return found


def counts(embedded: EmbeddedOutput, part: int) -> NDArray[np.int64]:
    """Return how many embeddings each row of a part may have; of pictures one, whether it failed or not.

    Of faces only one small column is read.
    """
    uri = embedded.output.part(part)
    with embedded.output.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
        parquet = pq.ParquetFile(file)
        if embedded.column == "embedding":
            return np.ones(parquet.metadata.num_rows, np.int64)
        lists = parquet.read(columns=["objects.list.element.score"], use_threads=False)["objects"]
        lengths = pc.fill_null(pc.list_value_length(lists), 0)
        return np.asarray(lengths.to_numpy(), np.int64)


def read_rows(embedded: EmbeddedOutput, part: int, rows: Sequence[int]) -> EmbeddedRows:
    """Return the embeddings of some ascending ``rows`` of a part, each divided by its length.

    Pictures that failed or vanished have none; what is no vector is left out and counted. Raises UserError
    where the part is damaged or is of another network.
    """
    table = _table(embedded, part, rows)
    live = np.flatnonzero(~table["vanished"].to_numpy(zero_copy_only=False))
    table, numbers = _taken(table, live), np.asarray(rows, np.int64)[live]
    found = flat_embeddings(table, embedded.column, embedded.space.dimensions)
    parents = found.parents
    keys = _taken(table["key"], parents)
    ids = keys if embedded.column == "embedding" else _ids(keys, found.places)
    columns: dict[str, Any] = {
        "id": ids,
        "key": keys,
        "output": np.full(len(parents), embedded.number, np.int32),
        "part": np.full(len(parents), part, np.int32),
        "row": numbers[parents].astype(np.int32),
        "box": found.boxes,
        **{name: _taken(table[name], parents) for name in embedded.kept.names},
    }
    rows_of_index = pa.table(columns, schema=pa.schema([*ROW, *embedded.kept]))
    return EmbeddedRows(rows_of_index, found.vectors, found.left_out)


def flat_embeddings(table: pa.Table, column: Place, dimensions: int) -> FlatEmbeddings:
    """Return the embeddings in a ``column`` of rows, each divided by its length; nulls have none."""
    parents, places, embeddings, boxes = _flat(table, column)
    vectors, good, left_out = _normalized(embeddings, dimensions)
    return FlatEmbeddings(parents[good], places[good], _taken(boxes, good), vectors, left_out)


def _schema(reader: Reader) -> pa.Schema:
    """Return the columns of the first part, with what they say of themselves."""
    output = Output(reader.uri, reader.storage)
    numbers = output.finished()
    if not numbers:
        raise UserError(
            f"{redact(reader.uri)} has no finished part\n  what to do: let its job write some first"
        )
    uri = output.part(min(numbers))
    with reader.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
        return pq.read_schema(file)


def _own(reader: Reader) -> Sequence[str]:
    """Return the columns that the output's own job kept of its input."""
    section = reader.settings.get("input")
    keep = section.get("keep") if isinstance(section, dict) else None
    return [str(name) for name in keep or ()]


def _kept(reader: Reader, schema: pa.Schema, name: str) -> pa.Field[Any]:
    if name in ROW.names:
        raise UserError(
            f"index.keep: every row has the column {name!r} anyway\n  what to do: leave it out of keep"
        )
    if name not in schema.names:
        near = nearest(name, schema.names)
        raise UserError(
            f"{redact(reader.uri)} has no column {name!r}, which the index keeps\n  what to do: "
            + (
                f"did you mean {near}?"
                if near
                else "give an output that has it, or leave it out of index.keep"
            )
        )
    return pa.field(name, schema.field(name).type)


def _table(embedded: EmbeddedOutput, part: int, rows: Sequence[int]) -> pa.Table:
    """Return rows of a part, of which only their row groups are read."""
    uri = embedded.output.part(part)
    of_object = [f"objects.list.element.{name}" for name in ("box", "embedding")]
    wanted = ["embedding"] if embedded.column == "embedding" else of_object
    with embedded.output.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
        parquet = pq.ParquetFile(file)
        found = embedding_column(parquet.schema_arrow)
        if found is None or found != (embedded.column, embedded.space):
            raise another_space(uri, found[1] if found else None, embedded.space)
        ends = np.cumsum([parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)])
        first, last = np.searchsorted(ends, [rows[0], rows[-1]], "right")
        columns = ["key", "vanished", *wanted, *embedded.kept.names]
        table = parquet.read_row_groups([*range(first, last + 1)], columns, use_threads=False)
        before = ends[first - 1] if first else 0
        taken: pa.Table = _taken(table, np.asarray(rows, np.int64) - before)
        return taken


def another_space(uri: str, found: EmbeddingSpace | None, expected: EmbeddingSpace) -> UserError:
    """Return the error for a part at ``uri`` that has no embeddings, or those of another space."""
    what = "no embeddings" if found is None else f"embeddings of {in_words(found)}"
    return UserError(
        f"{redact(uri)} has {what}; expected those of {in_words(expected)}\n"
        "  what to do: make that output anew with one network for all of its parts"
    )


def in_words(space: EmbeddingSpace) -> str:
    """Return what tells an embedding space from others, in words."""
    mirrored = ", with mirror images" if space.mirror else ""
    return f"{space.network} ({space.weights[:16]}, {space.dimensions} numbers{mirrored})"


def _flat(
    table: pa.Table, column: Place
) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array[Any], pa.Array[Any]]:
    """Return of each embedding that is not null its row, its number there, itself, and its box."""
    values: Any = table[column].combine_chunks()
    if column == "embedding":
        parents = np.arange(table.num_rows, dtype=np.int64)
        vectors, boxes = values, pa.nulls(table.num_rows, BOX)
    else:
        parents = np.asarray(pc.list_parent_indices(values).to_numpy(), np.int64)
        objects = pc.list_flatten(values)
        vectors, boxes = pc.struct_field(objects, "embedding"), pc.struct_field(objects, "box").cast(BOX)
    places = np.arange(len(parents)) - np.searchsorted(parents, parents)
    there = np.flatnonzero(vectors.is_valid().to_numpy(zero_copy_only=False))
    return parents[there], places[there], _taken(vectors, there), _taken(boxes, there)


def _normalized(
    embeddings: Any, dimensions: int
) -> tuple[NDArray[np.float16], NDArray[np.int64], dict[str, int]]:
    """Return the vectors (M, D) of length 1, which of the embeddings (M,) they are, and what is left out."""
    flat = embeddings.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    lengths = np.sqrt(np.einsum("nd,nd->n", flat, flat, dtype=np.float64))
    finite, zero = np.isfinite(lengths), lengths == 0
    good = np.flatnonzero(finite & ~zero)
    if len(good) < len(flat):
        flat, lengths = flat[good], lengths[good]
    vectors = (flat / lengths[:, None]).astype(np.float16)
    found = {NOT_FINITE: int((~finite).sum()), ZERO: int(zero.sum())}
    return vectors, good, {reason: count for reason, count in found.items() if count}


def _taken(values: Any, places: NDArray[np.int64]) -> Any:
    """Return the values at ascending places, uncopied where these are next to each other."""
    if len(places) and places[-1] - places[0] == len(places) - 1:
        return values.slice(int(places[0]), len(places))
    return values.take(places)


def _ids(keys: Any, places: NDArray[np.int64]) -> Any:
    return pc.binary_join_element_wise(keys, pc.cast(pa.array(places), pa.string()), "#")
