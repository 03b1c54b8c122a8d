"""How well faces are named where it is known who is in each picture: judged from what the parts say.

A worker compares the largest face of each picture with the whole gallery (`index.one_to_many`), and keeps a
few numbers of it; so the evaluation reads these alone, and runs again without a search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.index.embeddings import FlatEmbeddings
from cnnbatch.index.gallery import Gallery, names_of
from cnnbatch.index.named_pictures import largest_faces
from cnnbatch.index.one_to_many import Probes, searched
from cnnbatch.metrics import Evaluated, Value, identification
from cnnbatch.metrics.identification import Searches
from cnnbatch.metrics.intervals import REPLICATES
from cnnbatch.metrics.verification import name_hashes, replicate_weights, trials, value
from cnnbatch.output.evaluation import Evaluation, write_evaluation
from cnnbatch.output.reader import Reader

_FIELDS: list[pa.Field[Any]] = [
    pa.field("true_person", pa.string()),
    pa.field("is_enrolled", pa.bool_()),
    pa.field("judged_face", pa.int32()),
    pa.field("mate_rank", pa.int32()),
    pa.field("mate_similarity", pa.float64()),
    pa.field("other_similarity", pa.float64()),
]
JUDGED = pa.schema(_FIELDS)
"""What is known of a picture's largest face: who it truly is, and whether the gallery has another face of
that person; the face's number, null where none was found; one more than the number of others' faces that are
at least as similar as the best of that person, and how similar that and the best of others' are."""


def judged_columns(
    table: pa.Table, found: FlatEmbeddings, own: NDArray[np.int64], gallery: Gallery, truth: str
) -> dict[str, pa.Array[Any]]:
    """Return the columns `JUDGED` of a part's rows (N,), whose embeddings are ``found``."""
    names = names_of(table, truth)
    keys = table["key"].take(found.parents)
    largest = largest_faces(keys, pa.chunked_array([found.boxes])) if len(found.parents) else np.empty(0, int)
    faces = np.array([face for face in largest if names[found.parents[face]]], np.int64)
    rows = found.parents[faces]
    who = [str(names[row]) for row in rows]
    people = np.array([gallery.places.get(name, -1) for name in who], np.int64)
    probes = Probes(found.vectors[faces], people, own[faces])
    parts = [*searched(probes, gallery.enrolled, name_hashes(who))]
    judged = identification.merge(parts) if parts else None
    enrolled = [None if name is None else name in gallery.places for name in names]
    columns: dict[str, Any] = {"true_person": pa.array(names, pa.string())}
    return columns | _columns(judged, table.num_rows, rows, found.places[faces], enrolled)


def _columns(
    judged: Searches | None,
    count: int,
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    enrolled: list[bool | None],
) -> dict[str, Any]:
    face = np.full(count, -1, np.int32)
    rank = np.zeros(count, np.int32)
    mate, other = np.full(count, np.nan), np.full(count, np.nan)
    face[rows] = places
    if judged is not None:
        rank[rows], mate[rows], other[rows] = judged.rank, judged.mate, judged.other
        for row, mated in zip(rows.tolist(), judged.mated.tolist(), strict=True):
            enrolled[row] = mated
    return {
        "is_enrolled": pa.array(enrolled, pa.bool_()),
        "judged_face": pa.array(face, mask=face < 0),
        "mate_rank": pa.array(rank, mask=rank == 0),
        "mate_similarity": pa.array(mate, mask=np.isnan(mate)),
        "other_similarity": pa.array(other, mask=np.isnan(other)),
    }


def searches_of(result: Reader) -> Searches:
    """Return the searches that an output of ``identify`` keeps: those of pictures whose person is known."""
    parts = [_of_batch(batch) for batch in result.batches([*JUDGED.names, "vanished"])]
    return identification.merge(parts)


def _of_batch(batch: pa.RecordBatch) -> Searches:
    known = np.asarray(batch["true_person"].is_valid()) & ~np.asarray(batch["vanished"].fill_null(False))
    some = batch.filter(pa.array(known))
    mate, other = (
        some[name].to_numpy(zero_copy_only=False) for name in ("mate_similarity", "other_similarity")
    )
    return Searches(
        name_hashes(some["true_person"]),
        np.asarray(some["is_enrolled"].fill_null(False)),
        np.asarray(some["judged_face"].is_null()),
        np.asarray(some["mate_rank"].fill_null(0), np.int32),
        np.asarray(mate, np.float64),
        np.asarray(other, np.float64),
        identification.MOST_RANKS,
    )


def evaluate_answers(
    result: Reader, kind: str, answers: Mapping[str, int], threshold: float | None, truth: str | None
) -> Evaluation:
    """Write what an output of a question is worth: counts, and where the truth is known error rates.

    ``answers`` are counts of the embeddings, ``threshold`` is the similarity that was decided by, if any.
    """
    found = Evaluated({})
    judged = None
    if truth is not None:
        judged = searches_of(result)
    if judged is not None and len(judged.person):
        found = identification.result(judged)
        found = Evaluated({**found.metrics, **decision_rates(judged, threshold)}, found.tables)
    counts = {name: Value(float(count), count=answers["faces"]) for name, count in answers.items()}
    evaluation = Evaluation(
        task=kind,
        images=len(result) if judged is None else len(judged.person),
        failed=result.failures().total() if judged is None else int(judged.failed.sum()),
        truth=truth or "",
        metrics={**found.metrics, **counts},
    )
    with tempfile.TemporaryDirectory(prefix="cnnbatch-") as folder:
        for name, table in found.tables.items():
            pq.write_table(table, Path(folder) / f"{name}.parquet")
        write_evaluation(result.uri, result.storage, evaluation, Path(folder))
    return evaluation


def decision_rates(
    searches: Searches, threshold: float | None, replicates: int = REPLICATES
) -> dict[str, Value]:
    """Return FPIR and FNIR at the similarity that names were decided by.

    ``FPIR``: the share of searches for people who are not enrolled that name somebody. ``FNIR``: the share
    of searches for people who are that don't find them first, or not at the threshold. The intervals are a
    Poisson bootstrap over people.
    """
    first = np.where(searches.rank == 1, searches.mate, np.nan)
    scores = {"FPIR": searches.other, "FNIR": first}
    chosen = {"FPIR": ~searches.mated, "FNIR": searches.mated}
    return {
        name: _rate(scores[name][rows], searches.person[rows], threshold, name == "FNIR", replicates)
        for name, rows in chosen.items()
    }


def _rate(
    scores: NDArray[np.float64],
    person: NDArray[np.uint64],
    threshold: float | None,
    is_missed: bool,
    replicates: int,
) -> Value:
    if threshold is None:
        return Value(None, count=len(scores), reason="nothing was decided, since no threshold is calibrated")
    if not len(scores):
        who = "enrolled" if is_missed else "absent from the gallery"
        return Value(None, count=0, reason=f"no picture is of a person who is {who}")
    people = np.unique(person)
    found = trials(scores, [person], people, np.array([threshold]))
    drawn = [found.shares(weights) for weights in replicate_weights(people, replicates)]
    shares = [float(share[0]) for share in drawn if share is not None]
    accepted, total = found.accepted()
    share = float(accepted[0]) / total
    if is_missed:
        return value(1 - share, [1 - one for one in shares], total)
    return value(share, shares, total)
