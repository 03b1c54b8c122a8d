"""The main path of a map job: images in, one row each out, written shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import chain
from threading import Thread
from typing import TYPE_CHECKING
from uuid import uuid4

from cnnbatch.cluster.parallel import chosen_map
from cnnbatch.evaluation import evaluate
from cnnbatch.evaluation.face_lists import FaceList
from cnnbatch.evaluation.known_classes import KnownClasses
from cnnbatch.evaluation.named_list import named_list
from cnnbatch.evaluation.recognition import evaluate_faces
from cnnbatch.inference import fingerprint
from cnnbatch.inference.autotune.store import FEW, LARGE_SAMPLE, FirstImages, SettingsStore, model_of
from cnnbatch.inference.driver.inline import predict_inline, require_survivable
from cnnbatch.inference.driver.planner import ListingOptions, Planner
from cnnbatch.inference.driver.pools import HANDFUL, open_pool, runs_inline
from cnnbatch.inference.messages import LoadOrder, Work
from cnnbatch.inference.summary import Summary, places, record, say_summary, summarize
from cnnbatch.job import MapJob
from cnnbatch.output import lock, ownership, plan
from cnnbatch.output.evaluation import Evaluation
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import require_whole, weights_of
from cnnbatch.output.forgotten_rows import Forgetting
from cnnbatch.output.reader import Reader
from cnnbatch.report import preload, write_report
from cnnbatch.sources import open_source
from cnnbatch.sources.forgotten import without_forgotten
from cnnbatch.sources.regions import begun_earlier
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.terminal.screen import Screen
from cnnbatch.truth import OBJECT_LABEL
from cnnbatch.types import CODES, PASSING, ImageRef, Receipt, Source

if TYPE_CHECKING:
    from cnnbatch.inference.driver.scheduler import Scheduler

__all__ = ["RunOptions", "Summary", "places", "run"]

LISTING_S = 2.0
"""How long to wait for a listing before other processes are started: a handful of images needs none."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a call asks for beside the job.

    ``retry_failed``: predict failed rows again. ``new``: look at the input anew, predict what is new or
    has changed, and what failed for a passing reason. ``prune``: mark the rows of images that are gone.
    ``allow_mixed``: let parts of another precision lie beside those that are there. ``only_rows``: neither
    judge nor report. ``tests_training``: the output is that of the training whose model is tested.
    ``progress``: called with what a quiet run would show as its live line.
    """

    retry_failed: bool = False
    new: bool = False
    prune: bool = False
    allow_mixed: bool = False
    quiet: bool = False
    only_rows: bool = False
    tests_training: bool = False
    progress: Callable[[str], object] | None = None

    @property
    def lists_again(self) -> bool:
        """Whether an input that is planned is listed again."""
        return self.new or self.prune


def run(job: MapJob, options: RunOptions | None = None) -> Summary:
    """Run a map job to its end and return what it did.

    Raises UserError, EnvironmentFault or OutputHeld; whatever was finished stays, and the same
    call continues.
    """
    options = options or RunOptions()
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    source, faces = open_source(job.input, Storage(job.input.storage)), named_list(job)
    name, started = uuid4().hex, datetime.now(UTC)
    with (
        Screen(options.quiet, options.lists_again, options.progress) as screen,
        lock.hold(output.storage, output.path("_job", "lock"), name),
    ):
        finished, forgotten = output.finished(), require_whole(output)
        _begin(job, output, finished, options, screen)
        forgetting = Forgetting(forgotten, (weights_of(output) or None) if forgotten else None)
        source = without_forgotten(source, forgetting)
        listing = ListingOptions(options.lists_again, options.prune, some=job.max_failed < 1)
        planner = Planner(output, source, job.input, job.task.shard_size, listing, forgetting)
        running = _Running(job, source, output, planner, options, screen, faces)
        _predict_all(running, finished)
        summary = summarize(job, output, planner, screen, judges_all=not options.lists_again)
        if screen.done or any(summary.found.values()):
            kept = {**asdict(summary), **record(output, started)}
            output.storage.put(output.path("_job", "runs", f"{name}.json"), json.dumps(kept).encode())
        evaluation = None
        # What is not reported was predicted by this run, or by one that ended before its report.
        if output.decided("unreported") is not None and not options.only_rows:
            evaluation = _evaluate(running)
            write_report(output.uri, output.storage, partial(screen.stage, "report", unit="pictures"))
            output.undecide("unreported")
    say_summary(summary, evaluation, output, screen)
    return replace(summary, paths=places(output))


@dataclass(frozen=True, slots=True)
class _Running:
    """What one call of `run` works with; by the list of ``faces`` it is judged, where the job names one."""

    job: MapJob
    source: Source
    output: Output
    planner: Planner
    options: RunOptions
    screen: Screen
    faces: FaceList | None


def _begin(
    job: MapJob, output: Output, finished: Collection[int], options: RunOptions, screen: Screen
) -> None:
    """Refuse an output that another job has begun, or make room where it has finished nothing."""
    if not finished and not options.tests_training:
        ownership.make_room(output, "map", screen.note)
    identity = fingerprint.of_job(job)
    ownership.begin(output, identity, job.input, finished, options.lists_again, screen.note)


def _predict_all(running: _Running, finished: set[int]) -> None:
    """List the input, and predict what of it has no part or is to be predicted again."""
    planner, screen, is_new = running.planner, running.screen, running.planner.is_new
    if not planner.complete:
        screen.doing(f"listing {_input(running.job)}")
    planner.start()
    try:
        with _Workers(running) as workers:
            if is_new and _takes_processes(running):
                workers.scheduler()  # They start while the listing is read.
            for receipt in _predict(running, workers, _work(running, finished)):
                screen.count(receipt, planner.images if planner.complete else None)
        planner.note_applied()
    finally:
        planner.stop()
        if not planner.images and not planner.complete:
            running.output.undecide("begun")  # Nothing was written, so nothing is begun.


def _input(job: MapJob) -> str:
    """Return the first address of the input, and how many there are."""
    url = job.input.url
    if isinstance(url, str):
        return redact(url)
    return redact(url[0]) + (f" and {len(url) - 1} more" if len(url) > 1 else "")


def _work(running: _Running, finished: set[int]) -> Iterator[Work | None]:
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
    yield from _work_again(running.output, planner, finished, codes)


def _work_again(
    output: Output, planner: Planner, finished: set[int], codes: frozenset[str]
) -> Iterator[Work]:
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


class _Workers:
    """The workers of one call of `run`, started once there is work or it is known that there will be.

    ``first`` are the first images to predict, to be filled in before a worker is asked what it has loaded.
    """

    def __init__(self, running: _Running) -> None:
        self._running = running
        self._open = ExitStack()
        self._scheduler: Scheduler | None = None
        self.first: list[ImageRef] = []

    @cached_property
    def tuned(self) -> SettingsStore:
        """What keeps how they run; not made where there is no work, since it may look at the ground truth."""
        return _settings_store(self._running, self.first)

    @property
    def are_started(self) -> bool:
        """Whether there are any."""
        return self._scheduler is not None

    def scheduler(self) -> Scheduler:
        """Return what gives them their shards; they are started where they are not yet."""
        if self._scheduler is None:
            from cnnbatch.inference.driver.scheduler import Scheduler

            running = self._running
            compute, note = running.job.compute, running.screen.note
            count = f"{compute.workers} " if isinstance(compute.workers, int) else ""
            running.screen.doing(f"starting {count}worker{'s' * (compute.workers != 1)}")
            pool = self._open.enter_context(open_pool(compute, note))
            running.screen.doing(f"loading {model_of(running.job)}")
            tuned = self.tuned
            order = LoadOrder(
                running.job, running.source, running.output, False, tuned.kept(), tuned.remembered()
            )
            made = Scheduler(pool, order, self.tuned, note, running.planner.count_shards)
            self._scheduler = self._open.enter_context(closing(made))
            made.start()
        return self._scheduler

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _takes_processes(running: _Running) -> bool:
    """Say whether a run that begins takes other processes, as far as the listing shows at once."""
    compute, planner = running.job.compute, running.planner
    if compute.pool == "auto" and compute.workers == "auto":
        planner.wait_for(HANDFUL + 1, LISTING_S)
    return not runs_inline(compute, planner.images if planner.complete else None)


def _predict(running: _Running, workers: _Workers, work: Iterator[Work | None]) -> Iterator[Receipt]:
    """Yield the receipts of ``work`` from the workers that suit it; where there is none, start nothing."""
    first = next((one for one in work if one is not None), None)
    if first is None:
        return
    job, output, planner = running.job, running.output, running.planner
    output.undecide("failed")
    _require_object_labels(running)
    output.decide("unreported", {})
    planner.wait_for(FEW)
    head = _head(first, work)
    workers.first += [ref for one in head for ref in one.shard.refs if not ref.is_forgotten]
    suspects = output.suspects()
    require_survivable(job.compute, suspects)
    inline = runs_inline(job.compute, planner.images if planner.complete else None) and not suspects
    if inline and not workers.are_started:
        running.screen.doing(f"loading {model_of(job)}")
        order = LoadOrder(job, running.source, output, True, workers.tuned.kept(), workers.tuned.remembered())
        yield from predict_inline(order, chain(head, work), workers.tuned)
        return
    yield from workers.scheduler().predict(chain(head, work, _when_all_is_sent(running)), suspects)
    for index in suspects:
        output.storage.delete(output.suspect(index))


def _when_all_is_sent(running: _Running) -> Iterator[Work]:
    """Yield nothing; while the last shards are predicted, import what the report needs."""
    if not running.options.only_rows:
        Thread(target=preload, daemon=True).start()
    yield from ()


def _require_object_labels(running: _Running) -> None:
    """Refuse to add to an output of found objects whose rows don't say what these were called."""
    finished = running.output.finished() if OBJECT_LABEL in running.source.columns.names else ()
    if finished and OBJECT_LABEL not in Reader(running.output.uri, running.output.storage).schema.names:
        raise begun_earlier()


def _head(first: Work, work: Iterator[Work | None]) -> list[Work]:
    """Return the first shards, as many as hold the images on which a worker measures how to run."""
    head = [first]
    while sum(len(one.shard.refs) for one in head) < LARGE_SAMPLE and (more := next(work, None)) is not None:
        head.append(more)
    return head


def _settings_store(running: _Running, refs: Sequence[ImageRef]) -> SettingsStore:
    """Return what keeps how the workers run; where rows are judged, it also compares the classes."""
    job, output, planner = running.job, running.output, running.planner
    first = FirstImages(refs, lambda: planner.images)
    known = None if running.options.only_rows else KnownClasses(job, running.source, planner.shards)
    if known is not None:
        known.require_early(output.decided("classes"))
    mixed = running.options.allow_mixed
    return SettingsStore(job, output, first, mixed, known, running.screen)


def _evaluate(running: _Running) -> Evaluation | None:
    """Judge all that is finished, where there is a truth."""
    output, compute, images = running.output, running.job.compute, running.planner.images
    if running.faces is not None and running.job.evaluate.truth is not None:
        result = Reader(output.uri, output.storage)
        return evaluate_faces(result, running.faces, running.job.evaluate.truth, running.job.evaluate)
    apply = chosen_map(images, 1 if compute.pool == "inline" else "auto", compute)
    return evaluate(output.uri, output.storage, apply=apply, advance=running.screen.stage("evaluate", images))
