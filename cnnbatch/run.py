"""The main path of a map job: images in, one row each out, written shard by shard."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any
from uuid import uuid4

from cnnbatch import identity, lock, plan
from cnnbatch.errors import UserError
from cnnbatch.evaluation import evaluate
from cnnbatch.evaluation.summary import Evaluation, headline
from cnnbatch.inline import predict_inline
from cnnbatch.job import MapJob
from cnnbatch.listing import Looking, Planner
from cnnbatch.output import Output
from cnnbatch.parallel import chosen_map
from cnnbatch.process import Order
from cnnbatch.records import CODES, PASSING, Receipt, Work
from cnnbatch.report import write_report
from cnnbatch.report.ways import ran_by
from cnnbatch.screen import Screen, seen
from cnnbatch.settling import FEW, SAMPLE, Settling
from cnnbatch.sources import Source, open_source
from cnnbatch.sources.left_out import in_words
from cnnbatch.storage import Storage, normalize, redact

HANDFUL = 20


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a call asks for beside the job.

    ``retry_failed``: predict failed rows again. ``new``: look at the input anew, predict what is new or
    has changed, and what failed for a passing reason. ``prune``: mark the rows of images that are gone.
    ``allow_mixed``: let parts of another precision lie beside those that are there. ``only_rows``: neither
    judge nor report.
    """

    retry_failed: bool = False
    new: bool = False
    prune: bool = False
    allow_mixed: bool = False
    quiet: bool = False
    only_rows: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did: ``images`` were predicted now, ``total`` are planned, ``failed`` counts codes.

    ``found`` counts what its listing found: ``new``, ``changed`` and ``vanished`` images.
    """

    output: str
    images: int
    total: int
    failed: Mapping[str, int]
    seconds: float
    exit_status: int
    found: Mapping[str, int] = field(default_factory=dict)


def run(job: MapJob, options: RunOptions | None = None) -> Summary:
    """Run a map job to its end and return what it did.

    Raises UserError, EnvironmentFault or OutputHeld; whatever was finished stays, and the same
    call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    source = open_source(job.input, Storage(job.input.storage))
    name, started = uuid4().hex, datetime.now(UTC)
    with Screen(options.quiet) as screen, lock.hold(output.storage, output.path("_job", "lock"), name):
        finished = output.finished()
        _require_same_job(job, output, finished)
        looking = Looking(options.new or options.prune, options.prune)
        planner = Planner(output, source, job.input, job.task.shard_size, looking)
        running = _Running(job, source, output, planner, options, screen)
        planner.start()
        try:
            for receipt in _predict(running, _works(running, finished)):
                screen.count(receipt, planner.images if planner.complete else None)
            planner.settle()
        finally:
            planner.stop()
        summary = _summarize(job, output, planner, screen)
        if screen.done or any(summary.found.values()):
            record = {**asdict(summary), **_record(output, started)}
            output.storage.put(output.path("_job", "runs", f"{name}.json"), json.dumps(record).encode())
        evaluation = None
        # What is not reported was predicted by this run, or by one that ended before its report.
        if output.decided("unreported") is not None and not options.only_rows:
            evaluation = _evaluate(job, output, planner.images, screen)
            write_report(output.uri, output.storage, partial(screen.stage, "report", unit="pictures"))
            output.undecide("unreported")
    tell(summary, evaluation, output, screen)
    return summary


@dataclass(frozen=True, slots=True)
class _Running:
    """What one call of `run` works with."""

    job: MapJob
    source: Source
    output: Output
    planner: Planner
    options: RunOptions
    screen: Screen


def _require_same_job(job: MapJob, output: Output, finished: Collection[int]) -> None:
    """Refuse a job other than the one that made the finished parts; without parts, any job may."""
    if finished:
        output.require_identity(identity.of_job(job))
    else:
        output.undecide("settings", "identity", "classes")


def _works(running: _Running, finished: set[int]) -> Iterator[Work | None]:
    """Yield the shards without a part, then those whose part is to be made again in places.

    None is yielded where the listing has to be waited for.
    """
    planner, options = running.planner, running.options
    for shard in planner.shards(finished):
        running.screen.skipped = planner.skipped
        if shard is None:
            running.screen.show()
        yield None if shard is None else Work(shard)
    codes = CODES if options.retry_failed else PASSING if options.new else frozenset()
    yield from _again(running.output, planner, finished, codes)


def _again(output: Output, planner: Planner, finished: set[int], codes: frozenset[str]) -> Iterator[Work]:
    """Yield the finished shards whose images have changed since, or failed with one of ``codes``."""
    pending = planner.changes().pending
    wanted = finished if codes else finished & pending
    footers = zip(sorted(wanted), output.footers(sorted(wanted)), strict=True)
    # Of each part the digest that it was made with; None where it has failures that are tried again.
    made = {
        index: None if codes & footer["receipt"]["failed"].keys() else footer["digest"]
        for index, footer in footers
        if index in pending or codes & footer["receipt"]["failed"].keys()
    }
    for shard in planner.some(made):
        if made[shard.index] != plan.digest(shard):
            yield Work(shard, again=codes)


def _predict(running: _Running, works: Iterator[Work | None]) -> Iterator[Receipt]:
    """Yield the receipts of ``works`` from the pool that suits them; where there are none, start nothing."""
    first = next((work for work in works if work is not None), None)
    if first is None:
        return
    job, output, planner = running.job, running.output, running.planner
    output.decide("unreported", {})
    planner.wait_for(FEW)
    head = _head(first, works)
    refs = [ref for work in head for ref in work.shard.refs]
    settling = Settling(job, output, refs, lambda: planner.images, running.options.allow_mixed)
    suspects = output.suspects()
    inline = _runs_inline(job, planner, suspects)
    order = Order(job, running.source, output, inline, settling.kept())
    if inline:
        yield from predict_inline(order, chain(head, works), settling)
        return
    from cnnbatch.pool import Pool, connect

    connect(job.compute)
    pool = Pool(order, settling, running.screen.note, planner.count_shards())
    yield from pool.predict(chain(head, works), suspects)
    for index in suspects:
        output.storage.delete(output.suspect(index))


def _head(first: Work, works: Iterator[Work | None]) -> list[Work]:
    """Return the first works, as many as hold the images on which a worker measures how to run."""
    head = [first]
    while sum(len(work.shard.refs) for work in head) < SAMPLE and (work := next(works, None)) is not None:
        head.append(work)
    return head


def _runs_inline(job: MapJob, planner: Planner, suspects: Collection[int]) -> bool:
    if job.compute.pool == "inline" and suspects:
        raise UserError(
            f"an earlier run in one process ended while it was at part {min(suspects)}\n"
            "  what to do: give compute.pool=ray (or auto) once: that survives it and gives the image its row"
        )
    if job.compute.pool == "auto":
        return (
            planner.complete and planner.images <= HANDFUL and job.compute.workers == "auto" and not suspects
        )
    return job.compute.pool == "inline"


def _summarize(job: MapJob, output: Output, planner: Planner, screen: Screen) -> Summary:
    failed = sum(screen.failed.values())
    status = 1 if failed > job.max_failed * screen.done else 0
    found: dict[str, int] = {
        name: planner.found[name] for name in ("new", "changed", "vanished") if name in planner.found
    }
    seconds = round(screen.seconds, 3)
    return Summary(output.uri, screen.done, planner.images, dict(screen.failed), seconds, status, found)


def _record(output: Output, started: datetime) -> dict[str, Any]:
    """Return what the record of a run holds beside its summary: when, and by what."""
    made = output.decided("identity") or {}
    return {
        "started": started.isoformat(timespec="microseconds"),
        "model": made.get("task.model", made.get("task.name")),
        "weights": made.get("weights"),
        "precision": made.get("precision"),
        "versions": identity.versions(),
    }


def _evaluate(job: MapJob, output: Output, images: int, screen: Screen) -> Evaluation | None:
    """Judge all that is finished, where there is a truth."""
    apply = chosen_map(images, 1 if job.compute.pool == "inline" else "auto", job.compute)
    return evaluate(output.uri, output.storage, apply=apply, advance=screen.stage("evaluate", images))


def tell(summary: Summary, evaluation: Evaluation | None, output: Output, screen: Screen) -> None:
    """Say what the run did, how good it is, and for a handful of images what was seen in each."""
    say = screen.say
    if "changed" in summary.found:  # The input was looked at again.
        words = [f"{count:,} {name}" for name, count in summary.found.items() if count]
        say(f"the input has {', '.join(words) or 'nothing new'}")
    if left_out := output.left_out():
        say(f"left out, since they are no images: {in_words(left_out)} (cnnbatch describe, input.suffixes)")
    if not summary.images:
        say(f"nothing to do: all {summary.total:,} images are in {redact(output.path('predictions'))}")
        return
    if summary.total <= HANDFUL:
        for line in seen(output.uri, output.storage):
            say(line)
    rate = summary.images / max(summary.seconds, 1e-3)
    whole = f" of {summary.total:,}" if summary.total > summary.images else ""
    cost = f"{summary.seconds:.1f} s ({rate:,.1f} images/s, start-up included)"
    say(f"{summary.images:,}{whole} images in {cost}")
    for code, count in sorted(summary.failed.items()):
        say(f"  failed: {count:,} {code}")
    if evaluation is not None:
        say(f"  {headline(evaluation)}")
    if ways := ran_by(output):
        say(f"  ran by: {ways} (see the report)")
    say(f"  rows:   {redact(output.path('predictions'))}")
    say(f"  report: {redact(output.path('report.html'))}")
    if summary.exit_status:
        say("more failures than max_failed allows; the same command with --retry-failed tries those again")
