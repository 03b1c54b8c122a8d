"""The main path of a job that asks an index about a collection: embed what is not embedded, then answer.

A part of the output answers one part of the embeddings, and is put create-only; its footer says by what it
was made. So the same command continues, and answers what the collection has since.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.humanize import counted
from cnnbatch.index.building import pool_of
from cnnbatch.index.calibrated import read_calibrated
from cnnbatch.index.embeddings import EmbeddedOutput
from cnnbatch.index.manifest import described
from cnnbatch.index.questions.answers import Matches, Names
from cnnbatch.index.questions.asked import Asked, Asking, IndexState, closing_held, held
from cnnbatch.index.questions.collection import digests, embedded_collection
from cnnbatch.index.questions.folder import (
    EMBEDDED,
    GALLERY,
    begin,
    calibration_digest,
    digest_of,
    require_room,
)
from cnnbatch.index.questions.judged import evaluate_answers
from cnnbatch.index.questions.part import COUNTED, PartAnswerer, Pending
from cnnbatch.index.search import Index, open_index
from cnnbatch.inference import fingerprint
from cnnbatch.inference.run import RunOptions, Summary, places
from cnnbatch.inference.summary import TOO_MANY
from cnnbatch.job import IdentifyJob
from cnnbatch.output import lock
from cnnbatch.output.evaluation import Evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.reader import Reader
from cnnbatch.report import write_report
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen

_DECISION = "decision"


def ask(job: Asking, options: RunOptions | None = None) -> Summary:
    """Search for, or name, every embedding of a collection; return what was done.

    Raises UserError, EnvironmentFault or OutputHeld: finished parts stay, and the same call continues.
    """
    options = options or RunOptions()
    began, name = time.monotonic(), uuid4().hex
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    index = open_index(job.index.url, Storage(job.index.storage))
    with lock.hold(output.storage, output.path("_job", "lock"), name):
        require_room(output)
        asked = _asked(job, index, output, options)
        with Screen(options.quiet, of_this_run=options.lists_again) as screen, closing_held():
            answered = _answered(asked, options, screen)
            summary = _summary(asked, answered, round(time.monotonic() - began, 3))
            if answered.now:
                _record(output, name, summary)
            # By this run, or by one that ended before its report.
            if output.decided("unreported") is not None:
                _judge(asked, screen)
            for line in _lines(summary, asked, answered):
                screen.say(line)
    return replace(summary, paths=places(output))


@dataclass(frozen=True, slots=True)
class _Answered:
    """How many rows were answered ``now`` and are there in ``all``, what failed, and what was decided."""

    now: int
    all: int
    failed: Mapping[str, int]
    answers: Mapping[str, int]
    stale: int


def _asked(job: Asking, index: Index, output: Output, options: RunOptions) -> Asked:
    """Return the question with the embeddings that it is about; those that are lacking are made."""
    there = partial(Output, storage=output.storage)
    embedded = embedded_collection(index, job.input, job.compute, there(output.path(EMBEDDED)), options)
    gallery = None
    if isinstance(job, IdentifyJob):
        _require_truth(job, embedded)
        if job.identify.gallery is not None:
            chosen = Input(url=job.identify.gallery, storage=job.input.storage)
            place = there(output.path(GALLERY))
            gallery = embedded_collection(index, chosen, job.compute, place, options)
    calibrated = read_calibrated(index.uri, index.storage, index.manifest.space)
    state = IndexState(index.uri, index.storage, index.manifest, index.etag, calibrated)
    asked = Asked(job, state, gallery, embedded, output)
    return replace(asked, fingerprint=fingerprint.fingerprint(identity_of(asked)))


def _require_truth(job: IdentifyJob, embedded: EmbeddedOutput) -> None:
    names = Reader(embedded.output.uri, embedded.output.storage).schema.names
    if job.identify.truth not in (None, "folder", *names):
        raise UserError(
            f"identify.truth: {redact(embedded.output.uri)} has no column {job.identify.truth!r}\n  what to "
            f"do: give folder, or one of its columns, which input.keep takes from a list: {', '.join(names)}"
        )


def identity_of(asked: Asked) -> dict[str, Any]:
    """Return what can change a row, JSON values by dotted names."""
    section = asked.job.identify if isinstance(asked.job, IdentifyJob) else asked.job.search
    fields = section.model_dump(mode="json")
    if fields.get("gallery"):
        fields["gallery"] = redact(normalize(fields["gallery"]))
    return {
        "task.name": asked.job.kind,
        "input.embeddings": redact(asked.embedded.output.uri),
        "space": described(asked.embedded.space),
        "index": redact(asked.index.uri),
        "index.state": digest_of(asked.index.manifest.model_dump(mode="json")),
        "index.calibration": calibration_digest(asked.index.calibrated),
        "gallery.state": None if asked.gallery is None else digest_of(digests(asked.gallery)),
        **{f"{asked.job.kind}.{name}": value for name, value in fields.items()},
        "cnnbatch": fingerprint.versions()["cnnbatch"].rpartition(".")[0],
    }


def _answered(asked: Asked, options: RunOptions, screen: Screen) -> _Answered:
    """Answer every part of the embeddings that is not answered yet; return the counts of all."""
    output = asked.output
    finished = output.finished()
    begin(output, identity_of(asked), finished, asked.job, asked.embedded)
    wanted = digests(asked.embedded)
    again = options.lists_again or options.retry_failed
    pending, stale = _pending(output, wanted, finished, again)
    now = 0
    if pending:
        screen.doing("opening the index")
        decision = held(asked).answering
        assert isinstance(decision, Matches | Names)
        output.undecide(_DECISION)
        output.decide(_DECISION, asdict(decision.decision.threshold))
        output.decide("unreported", {})
        rows = len(Reader(asked.embedded.output.uri, asked.embedded.output.storage))
        advance = screen.stage("answer", rows)
        for receipt in pool_of(asked.job.compute, rows)(PartAnswerer(asked), pending):
            now += receipt.rows
            advance(receipt.rows)
    footers = list(output.footers(sorted(output.finished())))
    failed = sum((Counter(one["receipt"]["failed"]) for one in footers), Counter[str]())
    answers = {name: sum(one["answers"][name] for one in footers) for name in COUNTED}
    return _Answered(now, sum(one["receipt"]["rows"] for one in footers), failed, answers, stale)


def _pending(
    output: Output, wanted: Mapping[int, str], finished: set[int], again: bool
) -> tuple[list[Pending], int]:
    """Return the parts that are to be answered, and how many answer embeddings that are others now.

    These are answered again where that is asked for.
    """
    there = sorted(finished & wanted.keys())
    footers = zip(there, output.footers(there), strict=True)
    stale = [part for part, footer in footers if footer["digest"] != wanted[part]]
    new = [Pending(part, wanted[part]) for part in sorted(wanted.keys() - finished)]
    if not again:
        return new, len(stale)
    etags = {part: output.storage.head(output.part(part)).etag or "" for part in stale}
    return [*new, *(Pending(part, wanted[part], etags[part]) for part in stale)], 0


def _summary(asked: Asked, answered: _Answered, seconds: float) -> Summary:
    failed = sum(answered.failed.values())
    return Summary(
        output=asked.output.uri,
        images=answered.now,
        total=answered.all,
        failed=dict(answered.failed),
        seconds=seconds,
        exit_status=1 if failed > asked.job.max_failed * answered.all else 0,
        found=dict(answered.answers),
        failed_in_all=dict(answered.failed),
    )


def _record(output: Output, name: str, summary: Summary) -> None:
    started = datetime.now(UTC).isoformat(timespec="microseconds")
    kept = {**asdict(summary), "found": {}, "started": started}
    output.storage.put(output.path("_job", "runs", f"{name}.json"), json.dumps(kept).encode())


def _judge(asked: Asked, screen: Screen) -> None:
    """Write the evaluation and the report."""
    screen.doing("evaluating")
    judge_again(Reader(asked.output.uri, asked.output.storage))
    write_report(asked.output.uri, asked.output.storage, partial(screen.stage, "report", unit="pictures"))
    asked.output.undecide("unreported")


def judge_again(result: Reader) -> Evaluation:
    """Write what an output of a question is worth, from its parts alone."""
    kind = str(result.settings["kind"])
    footers = [one.info for one in result.receipts()]
    answers = {name: sum(one["answers"][name] for one in footers) for name in COUNTED}
    decision = Output(result.uri, result.storage).decided(_DECISION) or {}
    truth = result.settings.get("identify", {}).get("truth")
    return evaluate_answers(result, kind, answers, decision.get("similarity"), truth)


def _lines(summary: Summary, asked: Asked, answered: _Answered) -> Iterator[str]:
    if not answered.now:
        place = redact(asked.output.path("predictions"))
        yield f"nothing to do: all {counted(answered.all, 'row')} are in {place}"
    else:
        yield f"{counted(answered.now, 'image')} in {summary.seconds:.1f} s (start-up included)"
    yield from _decided_lines(asked, answered.answers)
    if answered.stale:
        changed = counted(answered.stale, "part")
        yield f"  {changed} of the embeddings changed since: give --new to answer them again"
    yield f"  rows:   {redact(asked.output.path('predictions'))}"
    yield f"  report: {redact(asked.output.path('report.html'))}"
    if summary.exit_status:
        yield TOO_MANY


def _decided_lines(asked: Asked, answers: Mapping[str, int]) -> Sequence[str]:
    what = "named" if isinstance(asked.job, IdentifyJob) else "found"
    embeddings = counted(answers["faces"], "embedding")
    line = f"  {embeddings}: {answers['known']:,} {what}, {answers['unknown']:,} unknown"
    if not answers["undecided"]:
        return [line]
    reason = (asked.output.decided(_DECISION) or {}).get("reason")
    return [f"{line}, {answers['undecided']:,} undecided", f"  undecided: {reason}"]
