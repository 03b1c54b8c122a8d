"""Answers one part of the embeddings, on any worker: read, asked, and put as one object, whole."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.index.embeddings import (
    EmbeddedOutput,
    FlatEmbeddings,
    another_space,
    embedding_column,
    flat_embeddings,
)
from cnnbatch.index.questions.answers import Names
from cnnbatch.index.questions.asked import Asked, Held, held
from cnnbatch.index.questions.judged import JUDGED, judged_columns
from cnnbatch.inference.fingerprint import versions
from cnnbatch.job import IdentifyJob
from cnnbatch.output import integrity
from cnnbatch.output.part import PartSpool
from cnnbatch.storage import AlreadyExists, Changed, redact
from cnnbatch.types import Receipt

COUNTED = ("faces", "known", "unknown", "undecided")
"""What a part's footer counts: embeddings, and what was decided of each."""

UNKNOWN = "unknown"
_GROUP = 1_024  # rows

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pending:
    """A part to be answered, of embeddings with this ``digest``, in place of one with ``etag``, if any."""

    part: int
    digest: str
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class PartAnswerer:
    """What answers a question part by part; travels to workers, which call it."""

    asked: Asked

    def __call__(self, pending: Pending) -> Receipt:
        """Answer a part; one that another worker has put meanwhile stands."""
        began, started = time.monotonic(), _now()
        held_here = held(self.asked)
        table = read_part(self.asked.embedded, pending.part)
        answered, counts = _answered(self.asked, held_here, table, pending.part)
        failed = _failed(answered)
        seconds = {"answer": round(time.monotonic() - began, 4)}
        receipt = Receipt(pending.part, answered.num_rows, answered.num_rows, failed, seconds, failed)
        footer = {
            "fingerprint": self.asked.fingerprint,
            "digest": pending.digest,
            "answers": counts,
            "versions": versions(),
            "receipt": asdict(receipt),
            "started": started,
            "finished": _now(),
        }
        self._put(pending, answered, footer)
        return receipt

    def _put(self, pending: Pending, answered: pa.Table, footer: dict[str, Any]) -> None:
        output = self.asked.output
        uri = output.part(pending.part)
        with PartSpool(answered.schema) as spool:
            for batch in answered.combine_chunks().to_batches(_GROUP):
                spool.write(batch)
            file = spool.finish(footer)
            try:
                if pending.etag is None:
                    output.storage.create(uri, file)
                else:
                    output.storage.replace(uri, file, pending.etag)
            except AlreadyExists:
                self._require_ours(pending)
            except Changed:
                pass  # Another run has replaced it first: its part stands.

    def _require_ours(self, pending: Pending) -> None:
        """Refuse a part that a run of another job, which had not ended yet, has put in this one's place."""
        found = self.asked.output.footer(pending.part)
        if (found.get("fingerprint"), found["digest"]) != (self.asked.fingerprint, pending.digest):
            raise UserError(
                f"{redact(self.asked.output.part(pending.part))} was written by a run of another job, which "
                "had not ended when this one began\n  what to do: choose another output, or delete this one"
            )


def read_part(embedded: EmbeddedOutput, part: int) -> pa.Table:
    """Return all rows of a part of an output with embeddings; raises UserError for one of another network."""
    uri = embedded.output.part(part)
    with embedded.output.storage.open(uri) as file, integrity.reading(uri, integrity.MAKE_AGAIN):
        parquet = pq.ParquetFile(file)
        found = embedding_column(parquet.schema_arrow)
        if found != (embedded.column, embedded.space):
            raise another_space(uri, found[1] if found else None, embedded.space)
        return parquet.read(use_threads=False).combine_chunks()


def _answered(asked: Asked, here: Held, table: pa.Table, part: int) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of a part with what is answered of each, and how many answers there are by kind."""
    column = asked.embedded.column
    found = _searched(table, asked.embedded)
    ids = _ids(table, found, column == "objects")
    queries = np.asarray(found.vectors, np.float32)
    own = here.own_rows(part, ids)
    answers = here.answering.answer(queries, own)
    rows = table.replace_schema_metadata(None)
    if column == "objects":
        place = rows.column_names.index("objects")
        objects = _with_answers(table["objects"].combine_chunks(), found, answers)
        rows = rows.set_column(place, "objects", objects)
    else:
        struct = answers.to_struct_array().combine_chunks()
        where = np.full(table.num_rows, -1, np.int64)
        where[found.parents] = np.arange(len(found.parents))
        rows = rows.drop_columns(["embedding"]).append_column("answer", struct.take(_or_null(where)))
    if isinstance(here.answering, Names) and isinstance(asked.job, IdentifyJob) and asked.job.identify.truth:
        judged = judged_columns(table, found, own, here.answering.gallery, asked.job.identify.truth)
        for field in JUDGED:
            rows = rows.append_column(field, judged[field.name])
    return rows, _counts(answers)


def _searched(table: pa.Table, embedded: EmbeddedOutput) -> FlatEmbeddings:
    """Return the embeddings of a part that are searched for: not those of pictures that have vanished."""
    found = flat_embeddings(table, embedded.column, embedded.space.dimensions)
    here = np.flatnonzero(~table["vanished"].to_numpy(zero_copy_only=False)[found.parents])
    return FlatEmbeddings(
        found.parents[here],
        found.places[here],
        found.boxes.take(here),
        found.vectors[here],
        found.left_out,
    )


def _ids(table: pa.Table, found: FlatEmbeddings, of_objects: bool) -> pa.Array[Any]:
    keys: Any = table["key"].take(found.parents).combine_chunks()
    places: Any = pc.cast(pa.array(found.places), pa.string())
    ids: pa.Array[Any] = pc.binary_join_element_wise(keys, places, "#") if of_objects else keys
    return ids


def _or_null(places: NDArray[np.int64]) -> Any:
    """Return places to take, null for -1."""
    return pa.array(places, mask=places < 0)


def _with_answers(objects: Any, found: FlatEmbeddings, answers: pa.Table) -> pa.Array[Any]:
    """Return lists of objects without their embeddings, each with what is answered of it, null of others."""
    lengths = np.asarray(pc.fill_null(pc.list_value_length(objects), 0), np.int64)
    starts = np.append(0, np.cumsum(lengths))
    place = np.full(starts[-1], -1, np.int64)
    place[starts[found.parents] + found.places] = np.arange(len(found.parents))
    taken = answers.take(_or_null(place)).combine_chunks()
    flat = pc.list_flatten(objects)
    kept = [one for one in flat.type if one.name != "embedding"]
    columns: Columns = {one.name: pc.struct_field(flat, one.name) for one in kept}
    columns |= {name: taken[name].combine_chunks() for name in taken.column_names}
    if "person" in columns:
        columns |= _labelled(columns)
    struct = pa.StructArray.from_arrays([*columns.values()], [*columns])
    is_null = np.append(np.asarray(objects.is_null()), False)
    offsets: Any = pa.array(starts.astype(np.int32), mask=is_null)
    lists: pa.Array[Any] = pa.ListArray.from_arrays(offsets, struct)
    return lists


def _labelled(columns: Columns) -> Columns:
    """Return the labels of faces, which are names where these are decided, and how sure each label is.

    A face that nothing decides about keeps what the detector said; ``detector_score`` always does.
    """
    score = columns["score"]
    named = columns["is_known"].fill_null(False)
    unknown: Any = pc.invert(columns["is_known"])
    unknown = unknown.fill_null(False)
    probability = columns["probability"]
    improbability = pc.subtract(pa.scalar(1.0), probability)
    label = pc.if_else(named, columns["person"], pc.if_else(unknown, UNKNOWN, columns["label"]))
    sure = pc.if_else(named, probability, pc.if_else(unknown, improbability, score.cast(pa.float64())))
    return {"label": label, "score": sure.cast(pa.float32()), "detector_score": score}


def _counts(answers: pa.Table) -> dict[str, int]:
    known = answers["is_known"].to_pylist()
    numbers = (len(known), known.count(True), known.count(False), known.count(None))
    return dict(zip(COUNTED, numbers, strict=True))


def _failed(rows: pa.Table) -> dict[str, int]:
    codes = pc.struct_field(rows["error"].combine_chunks(), "code").drop_null()
    return {one["values"]: one["counts"] for one in pc.value_counts(codes).to_pylist()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
