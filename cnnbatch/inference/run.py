"""The main path of a map job: images in, one row each out, written shard by shard."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import Any
from uuid import uuid4

from cnnbatch import terminal
from cnnbatch.cluster.parallel import chosen_map
from cnnbatch.errors import UserError
from cnnbatch.evaluation import evaluate
from cnnbatch.evaluation.known_classes import KnownClasses
from cnnbatch.inference import fingerprint
from cnnbatch.inference.autotune.store import FEW, SAMPLE, Settling, model_of
from cnnbatch.inference.driver.inline import predict_inline
from cnnbatch.inference.driver.planner import Looking, Planner
from cnnbatch.inference.messages import Order, Work
from cnnbatch.job import MapJob
from cnnbatch.output import lock, ownership, plan
from cnnbatch.output.evaluation import Evaluation, headline
from cnnbatch.output.failures import failed_images
from cnnbatch.output.folder import Output
from cnnbatch.output.pages import left_out_of
from cnnbatch.output.reader import Reader
from cnnbatch.report import write_report
from cnnbatch.report.lines import result_lines
from cnnbatch.report.ways import ran_by
from cnnbatch.sources import open_source
from cnnbatch.sources.files.left_out import in_words
from cnnbatch.sources.regions import begun_earlier
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import EXAMPLES, Screen
from cnnbatch.truth import OBJECT_LABEL
from cnnbatch.types import CODES, PASSING, Receipt, Source

HANDFUL = 20
TOO_MANY = "more failures than max_failed allows; the same command with --retry-failed tries those again"
_PLACES = {"predictions": "predictions", "evaluation": "evaluation.json", "report": "report.html"}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a call asks for beside the job.

    ``retry_failed``: predict failed rows again. ``new``: look at the input anew, predict what is new or
    has changed, and what failed for a passing reason. ``prune``: mark the rows of images that are gone.
    ``allow_mixed``: let parts of another precision lie beside those that are there. ``only_rows``: neither
    judge nor report. ``tests_training``: the output is that of the training whose model is tested.
    """

    retry_failed: bool = False
    new: bool = False
    prune: bool = False
    allow_mixed: bool = False
    quiet: bool = False
    only_rows: bool = False
    tests_training: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did: ``images`` were predicted now, ``total`` are planned, ``failed`` counts codes.

    ``found`` counts what its listing found: ``new``, ``changed`` and ``vanished`` images. ``failed_in_all``
    counts the codes of all rows, ``paths`` say where what it made lies.
    """

    output: str
    images: int
    total: int
    failed: Mapping[str, int]
    seconds: float
    exit_status: int
    found: Mapping[str, int] = field(default_factory=dict)
    failed_in_all: Mapping[str, int] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return all of it as a line of JSON; the exit status is called ``status``."""
        fields = asdict(self) | {"output": redact(self.output)}
        return json.dumps({"status": fields.pop("exit_status"), **fields})


def run(job: MapJob, options: RunOptions | None = None) -> Summary:
    """Run a map job to its end and return what it did.

    Raises UserError, EnvironmentFault or OutputHeld; whatever was finished stays, and the same
    call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    source = open_source(job.input, Storage(job.input.storage))
    name, started = uuid4().hex, datetime.now(UTC)
    anew = options.new or options.prune
    with (
        Screen(options.quiet, of_this_run=anew) as screen,
        lock.hold(output.storage, output.path("_job", "lock"), name),
    ):
        finished = output.finished()
        _begin(job, output, finished, options, screen)
        looking = Looking(anew, options.prune, some=job.max_failed < 1)
        planner = Planner(output, source, job.input, job.task.shard_size, looking)
        running = _Running(job, source, output, planner, options, screen)
        if not planner.complete:
            screen.doing(f"listing {_input(job)}")
        planner.start()
        try:
            for receipt in _predict(running, _works(running, finished)):
                screen.count(receipt, planner.images if planner.complete else None)
            planner.settle()
        finally:
            planner.stop()
            if not planner.images and not planner.complete:
                output.undecide("begun")  # Nothing was written, so nothing is begun.
        summary = _summarize(job, output, planner, screen, judges_all=not anew)
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
    return replace(summary, paths=places(output, _PLACES))


def places(output: Output, names: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses of those files and folders of an output that are there."""
    found = {name: output.path(place) for name, place in names.items()}
    there = {name for name, uri in found.items() if name == "predictions" or output.storage.exists(uri)}
    return {name: redact(uri) for name, uri in found.items() if name in there}


@dataclass(frozen=True, slots=True)
class _Running:
    """What one call of `run` works with."""

    job: MapJob
    source: Source
    output: Output
    planner: Planner
    options: RunOptions
    screen: Screen


def _begin(
    job: MapJob, output: Output, finished: Collection[int], options: RunOptions, screen: Screen
) -> None:
    """Refuse an output that another job has begun, or make room where it has finished nothing."""
    if not finished and not options.tests_training:
        ownership.make_room(output, "map", screen.note)
    identity, anew = fingerprint.of_job(job), options.new or options.prune
    ownership.begin(output, identity, job.input, finished, anew, screen.note)


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
    output.undecide("failed")
    _require_object_labels(running)
    output.decide("unreported", {})
    planner.wait_for(FEW)
    head = _head(first, works)
    refs = [ref for work in head for ref in work.shard.refs]
    known = None if running.options.only_rows else KnownClasses(job, running.source, planner.shards)
    if known is not None:
        known.require_early(output.decided("classes"))
    screen = running.screen
    settling = Settling(job, output, refs, lambda: planner.images, running.options.allow_mixed, known, screen)
    suspects = output.suspects()
    inline = _runs_inline(job, planner, suspects)
    order = Order(job, running.source, output, inline, settling.kept())
    if inline:
        screen.doing(f"loading {model_of(job)}")
        yield from predict_inline(order, chain(head, works), settling)
        return
    from cnnbatch.cluster import session
    from cnnbatch.inference.driver.scheduler import Pool

    count = f"{job.compute.workers} " if isinstance(job.compute.workers, int) else ""
    screen.doing(f"starting {count}workers, which load {model_of(job)}")
    session.connect(job.compute, screen.note)
    with session.faults():
        pool = Pool(order, settling, screen.note, planner.count_shards())
        yield from pool.predict(chain(head, works), suspects)
    for index in suspects:
        output.storage.delete(output.suspect(index))


def _input(job: MapJob) -> str:
    """Return the first address of the input, and how many there are."""
    url = job.input.url
    if isinstance(url, str):
        return redact(url)
    return redact(url[0]) + (f" and {len(url) - 1} more" if len(url) > 1 else "")


def _require_object_labels(running: _Running) -> None:
    """Refuse to add to an output of found objects whose rows don't say what these were called."""
    finished = running.output.finished() if OBJECT_LABEL in running.source.columns.names else ()
    if finished and OBJECT_LABEL not in Reader(running.output.uri, running.output.storage).schema.names:
        raise begun_earlier()


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


def _summarize(job: MapJob, output: Output, planner: Planner, screen: Screen, judges_all: bool) -> Summary:
    """Return what the run did; all rows are judged by ``max_failed``, or those that were predicted now."""
    rows, failed_in_all = _failed_in_all(output)
    if not judges_all:
        rows = screen.done
    failed = sum((failed_in_all if judges_all else screen.failed).values())
    found: dict[str, int] = {
        name: planner.found[name] for name in ("new", "changed", "vanished") if name in planner.found
    }
    return Summary(
        output=output.uri,
        images=screen.done,
        total=planner.images,
        failed=dict(screen.failed),
        seconds=round(screen.seconds, 3),
        exit_status=1 if failed > job.max_failed * rows else 0,
        found=found,
        failed_in_all=failed_in_all,
    )


def _failed_in_all(output: Output) -> tuple[int, dict[str, int]]:
    """Return the number of rows, and of failures by code, of all parts; kept until more is predicted."""
    kept = output.decided("failed")
    if kept is None:
        result = Reader(output.uri, output.storage)
        kept = output.decide(
            "failed", {"rows": len(result), "failed": dict(sorted(result.failures().items()))}
        )
    return kept["rows"], kept["failed"]


def _record(output: Output, started: datetime) -> dict[str, Any]:
    """Return what the record of a run holds beside its summary: when, and by what."""
    made = output.decided("identity") or {}
    return {
        "started": started.isoformat(timespec="microseconds"),
        "model": made.get("task.model", made.get("task.name")),
        "weights": made.get("weights"),
        "precision": made.get("precision"),
        "versions": fingerprint.versions(),
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
    if left_out := left_out_of(output):
        say(f"left out, since they are no images: {in_words(left_out)} (cnnbatch describe, input.suffixes)")
    if not summary.images:
        say(f"nothing to do: all {summary.total:,} images are in {redact(output.path('predictions'))}")
        _tell_failed(summary, output, screen)
        if summary.exit_status:
            say(TOO_MANY)
        return
    if summary.total <= HANDFUL:
        for line in result_lines(output.uri, output.storage):
            say(line)
    rate = summary.images / max(summary.seconds, 1e-3)
    whole = f" of {summary.total:,}" if summary.total > summary.images else ""
    cost = f"{summary.seconds:.1f} s ({rate:,.1f} images/s, start-up included)"
    say(f"{summary.images:,}{whole} images in {cost}")
    _tell_failed(summary, output, screen)
    if evaluation is not None:
        say(f"  {headline(evaluation)}")
    if ways := ran_by(output):
        say(f"  ran by: {ways} (see the report)")
    say(f"  rows:   {redact(output.path('predictions'))}")
    say(f"  report: {redact(output.path('report.html'))}")
    if summary.exit_status:
        say(TOO_MANY)


def _tell_failed(summary: Summary, output: Output, screen: Screen) -> None:
    """Say how many images failed in this run, which for instance, and how many in all."""
    for code, count in sorted(summary.failed.items()):
        screen.say(f"  failed: {count:,} {code}")
    if summary.failed and summary.total > HANDFUL:  # Of a handful each image was told.
        result = Reader(output.uri, output.storage)
        for one in islice(failed_images(result, screen.failed_in), EXAMPLES):
            screen.say(terminal.line(f"    {one.key}: {one.message}"))
    if summary.failed_in_all:
        count = sum(summary.failed_in_all.values())
        screen.say(
            f"  failed in all: {count:,} of {summary.total:,}; cnnbatch failed "
            f"{shlex.quote(redact(output.uri))} lists them"
        )
