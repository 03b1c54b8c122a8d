"""A job that compares pairs of pictures of a collection: how alike, how probably of one person.

Pairs are compared where the job is started, since a million take seconds once the embeddings are read; images
are embedded by workers before. One part is put after the other, create-only, so the same command continues.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch.index.calibrated import Calibrated, read_calibrated
from cnnbatch.index.calibration import Threshold
from cnnbatch.index.questions.collection import digests, embedded_collection
from cnnbatch.index.questions.folder import begin, calibration_digest, digest_of, require_room
from cnnbatch.index.questions.pairs import PairedFaces, Pairs, boxes_of, paired_faces, read_pairs
from cnnbatch.index.search import Index, open_index
from cnnbatch.inference import fingerprint
from cnnbatch.inference.run import RunOptions, Summary, places
from cnnbatch.job import VerifyJob
from cnnbatch.metrics import Evaluated, Value, verification
from cnnbatch.output import lock
from cnnbatch.output.evaluation import Evaluation, lines, write_evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.part import ERROR, PartSpool
from cnnbatch.output.reader import Reader
from cnnbatch.storage import AlreadyExists, Storage, normalize, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import BOX
from cnnbatch.types import Receipt

PAIRS_OF_A_PART = 50_000

_MESSAGES = {
    "not_found": "a picture of the pair is not in the collection",
    "no_face": "a picture of the pair has no face, or failed",
}
_FIELDS: list[pa.Field[Any]] = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("a", pa.string(), nullable=False),
    pa.field("b", pa.string(), nullable=False),
    pa.field("error", ERROR),
    pa.field("id_a", pa.string()),
    pa.field("box_a", BOX),
    pa.field("id_b", pa.string()),
    pa.field("box_b", BOX),
    pa.field("similarity", pa.float32()),
    pa.field("probability", pa.float64()),
    pa.field("is_same", pa.bool_()),
    pa.field("threshold", pa.float32()),
    pa.field("reason", pa.string()),
    pa.field("same", pa.bool_()),
]
ROW = pa.schema(_FIELDS)
"""A pair a row, in the order of the list: ``key`` is its number there, ``same`` what the list says.

``is_same`` is the decision at the stated false accept rate, null where nothing decides: ``reason``.
"""


@dataclass(frozen=True, slots=True)
class _Comparing:
    """What pairs are compared by."""

    job: VerifyJob
    pairs: Pairs
    calibrated: Calibrated | None
    threshold: Threshold


def compare(job: VerifyJob, options: RunOptions | None = None) -> Summary:
    """Compare the pairs of a list; return what was done. Raises as `questions.run.ask` does."""
    options = options or RunOptions()
    began = time.monotonic()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    index = open_index(job.index.url, Storage(job.index.storage))
    comparing = _comparing(job, index)
    with lock.hold(output.storage, output.path("_job", "lock"), uuid4().hex):
        require_room(output)
        to = Output(output.path("embedded"), output.storage)
        embedded = embedded_collection(index, job.input, job.compute, to, options)
        states = digests(embedded)
        finished = output.finished()
        identity = _identity(job, comparing, embedded.output.uri, states)
        begin(output, identity, finished, job, embedded)
        starts = range(0, len(comparing.pairs.first), PAIRS_OF_A_PART)
        wanted = [part for part in range(len(starts)) if part not in finished]
        now = 0
        with Screen(options.quiet) as screen:
            if wanted:
                screen.doing("reading the embeddings of the pairs")
                files = comparing.pairs.files()
                with paired_faces(embedded, sorted(states), files, job.verify.face) as faces:
                    for part in wanted:
                        rows = _rows(comparing, files, faces, starts[part])
                        _put(output, part, rows, fingerprint.fingerprint(identity))
                        now += rows.num_rows
            evaluation = _judge(output, comparing) if now else None
            summary = _summary(output, now, job.max_failed, time.monotonic() - began)
            for line in _lines(summary, comparing, evaluation):
                screen.say(line)
    return replace(summary, paths=places(output))


def _comparing(job: VerifyJob, index: Index) -> _Comparing:
    """Return what pairs are compared by; raises UserError for a rate that was not calibrated."""
    calibrated = read_calibrated(index.uri, index.storage, index.manifest.space)
    if calibrated is None:
        reason = f"{redact(index.uri)} is not calibrated: give cnnbatch calibrate first"
        threshold = Threshold(job.verify.rate, None, reason=reason)
    else:
        threshold = calibrated.pairs.threshold(job.verify.rate)
    pairs = read_pairs(normalize(job.verify.pairs), Storage(job.input.storage))
    return _Comparing(job, pairs, calibrated, threshold)


def _identity(
    job: VerifyJob, comparing: _Comparing, embeddings: str, states: dict[int, str]
) -> dict[str, Any]:
    """Return what can change a row, JSON values by dotted names; where the list lies can't."""
    fields = job.verify.model_dump(mode="json", exclude={"pairs"})
    return {
        "task.name": job.kind,
        "input.embeddings": redact(embeddings),
        "input.state": digest_of(states),
        "index.calibration": calibration_digest(comparing.calibrated),
        "verify.pairs": digest_of([comparing.pairs.first, comparing.pairs.second]),
        **{f"verify.{name}": value for name, value in fields.items()},
    }


def _rows(comparing: _Comparing, files: dict[str, int], faces: PairedFaces, start: int) -> pa.Table:
    """Return the rows of a part, from the ``start``-th pair on."""
    some = slice(start, start + PAIRS_OF_A_PART)
    first, second = comparing.pairs.first[some], comparing.pairs.second[some]
    one, other = (np.array([files[file] for file in side], np.int64) for side in (first, second))
    problems = [faces.problems[a] or faces.problems[b] for a, b in zip(one, other, strict=True)]
    failed = np.array([problem is not None for problem in problems], np.bool_)
    similarity = _cosines(faces.vectors, one, other)
    known = comparing.pairs.known
    columns = {
        "key": [f"{number:08}" for number in range(start, start + len(first))],
        "a": first,
        "b": second,
        "error": [problem and _error(problem) for problem in problems],
        "id_a": [faces.ids[face] for face in one],
        "box_a": boxes_of(faces.boxes[one]),
        "id_b": [faces.ids[face] for face in other],
        "box_b": boxes_of(faces.boxes[other]),
        "similarity": pa.array(similarity, mask=failed),
        **_decided(comparing, similarity, failed),
        "same": pa.nulls(len(first), pa.bool_()) if known is None else known.same[some],
    }
    return pa.table(columns, schema=ROW)


def _error(code: str) -> dict[str, str]:
    return {"stage": "verify", "code": code, "message": _MESSAGES[code]}


def _cosines(
    vectors: NDArray[np.float16], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float32]:
    sides = (np.asarray(vectors[rows], np.float32) for rows in (one, other))
    found: NDArray[np.float32] = np.einsum("nd,nd->n", *sides, dtype=np.float64).astype(np.float32)
    return found


def _decided(
    comparing: _Comparing, similarity: NDArray[np.float32], failed: NDArray[np.bool_]
) -> dict[str, Any]:
    least, count = comparing.threshold.similarity, len(similarity)
    probability: Any = pa.nulls(count, pa.float64())
    if comparing.calibrated is not None:
        found = comparing.calibrated.pairs.probabilities(similarity, comparing.job.verify.prior)
        probability = pa.array(found, mask=failed)
    return {
        "probability": probability,
        "is_same": pa.nulls(count, pa.bool_())
        if least is None
        else pa.array(similarity >= least, mask=failed),
        "threshold": pa.nulls(count, pa.float32()) if least is None else np.full(count, least, np.float32),
        "reason": [comparing.threshold.reason] * count,
    }


def _put(output: Output, part: int, rows: pa.Table, made: str) -> None:
    codes = Counter(error["code"] for error in rows["error"].to_pylist() if error)
    receipt = Receipt(part, rows.num_rows, rows.num_rows, dict(codes), {})
    footer = {
        "fingerprint": made,
        "digest": made,
        "receipt": asdict(receipt),
        "versions": fingerprint.versions(),
    }
    with PartSpool(rows.schema) as spool:
        for batch in rows.combine_chunks().to_batches(8_192):
            spool.write(batch)
        with suppress(AlreadyExists):  # Of a run of the same pairs that had not ended, else `begin` refuses.
            output.storage.create(output.part(part), spool.finish(footer))


def _judge(output: Output, comparing: _Comparing) -> Evaluation:
    """Write ``evaluation.json``: how many pairs were accepted, and error rates where the list knows them."""
    rows = Reader(output.uri, output.storage).arrow(["similarity", "is_same"])
    said = Counter(rows["is_same"].to_pylist())
    found = Evaluated({})
    if comparing.pairs.known is not None:
        known = comparing.pairs.known
        people = known.people()
        one, other = ([people[file] for file in side] for side in (known.first, known.second))
        scores = rows["similarity"].to_numpy().astype(np.float64)
        found = verification.result(verification.partial(scores, known.same, one, other, known.folds))
    counts = {"accepted": said[True], "rejected": said[False], "undecided": said[None]}
    total = rows.num_rows
    metrics = {name: Value(float(count), count=total) for name, count in counts.items()}
    evaluation = Evaluation(
        task="verify",
        images=total,
        failed=rows["similarity"].null_count,
        truth="" if comparing.pairs.known is None else redact(normalize(comparing.job.verify.pairs)),
        metrics={**found.metrics, **metrics},
    )
    with tempfile.TemporaryDirectory(prefix="cnnbatch-") as folder:
        for name, table in found.tables.items():
            pq.write_table(table, Path(folder) / f"{name}.parquet")
        write_evaluation(output.uri, output.storage, evaluation, Path(folder))
    return evaluation


def _summary(output: Output, now: int, max_failed: float, seconds: float) -> Summary:
    footers = [*output.footers(sorted(output.finished()))]
    failed = sum((Counter(one["receipt"]["failed"]) for one in footers), Counter[str]())
    total = sum(one["receipt"]["rows"] for one in footers)
    status = 1 if failed.total() > max_failed * total else 0
    return Summary(
        output.uri, now, total, dict(failed), round(seconds, 3), status, failed_in_all=dict(failed)
    )


def _lines(summary: Summary, comparing: _Comparing, evaluation: Evaluation | None) -> Iterator[str]:
    if evaluation is None:
        yield f"nothing to do: all {summary.total:,} pairs are compared"
    else:
        yield f"{summary.images:,} pairs compared in {summary.seconds:.1f} s"
        yield from (f"  {line.strip()}" for line in [*lines(evaluation)][1:])
    if comparing.threshold.reason:
        yield f"  undecided: {comparing.threshold.reason}"
    for code, count in summary.failed.items():
        yield f"  failed: {count:,} ({_MESSAGES[code]})"
    yield f"  rows: {redact(summary.output)}/predictions"
    if summary.exit_status:
        yield "more pairs failed than max_failed allows"
