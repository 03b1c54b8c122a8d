"""The whole of a job on a sample: the pool that a run takes, with its workers, into a folder thrown away.

It runs in a process of its own, so that the start-up counts as it does in a run, and Ray ends with it.
It ends after some time, not after some images: how many those are, a cluster knows better than a guess.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from itertools import islice, pairwise
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.compute as pc

from cnnbatch.cluster import nodes
from cnnbatch.evaluation.known_classes import KnownClasses
from cnnbatch.inference.autotune.store import FirstImages, SettingsStore
from cnnbatch.inference.bench.listing import shards_of
from cnnbatch.inference.bench.machine import Machine, machine_for
from cnnbatch.inference.bench.processes import in_new_processes
from cnnbatch.inference.bench.repeat import RepeatedSource, own_key
from cnnbatch.inference.driver.inline import predict_inline
from cnnbatch.inference.driver.pools import chosen_pool, open_pool
from cnnbatch.inference.messages import LoadOrder, Ready, TuningSample, Work
from cnnbatch.job import MapJob
from cnnbatch.output import reader
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Receipt, Shard, Source

RUN_S = 30.0  # from the first finished part on
PART_S = 5.0  # what a worker has to do for a part, so that it finishes several
PARTS_A_WORKER = 4  # at least, where the number of images is given


@dataclass(frozen=True, slots=True)
class SampleRun:
    """What to run: ``images`` of those in ``refs``, None for as long as `RUN_S`.

    ``inline``: in one process; ``started`` is when the caller began, by `time.monotonic`.
    """

    job: MapJob
    source: Source
    refs: tuple[ImageRef, ...]
    images: int | None
    inline: bool
    started: float


@dataclass(frozen=True, slots=True)
class Here:
    """This machine: its ``cores``, the part of it that the run ``used``, and what the device could do."""

    cores: int
    used: Machine
    has_bf16: bool
    has_openvino: bool


@dataclass(frozen=True, slots=True)
class Whole:
    """What the run showed: its ``images``, of which some ``failed`` (by code; their keys ``failed_keys``).

    It took ``seconds``, all in all; after ``ray_s`` Ray was there (0 where the run takes
    none), after ``start_s`` the first model, too.
    ``steady`` is the rate while all workers were at work, None where none finished two parts; a worker is
    busy for ``busy_s`` with an image. ``settings`` are the first worker's.
    """

    images: int
    failed: Mapping[str, int]
    failed_keys: frozenset[str]
    seconds: float
    ray_s: float
    start_s: float
    steady: float | None
    busy_s: float
    mean_bytes: float
    settings: Mapping[str, Any]
    here: Here

    @property
    def rate(self) -> float:
        """Images a second, start-up included."""
        return self.images / self.seconds

    @property
    def device(self) -> str:
        """The kind of device that the models were on."""
        return str(self.settings["device"]).partition(":")[0]


def measure(asked: SampleRun) -> Whole:
    """Run it in a new process; raises UserError and EnvironmentFault as a run does."""
    return in_new_processes(_run, asked)[0]


def steady_rate(footers: Iterable[Mapping[str, Any]]) -> float | None:
    """Return images a second while all workers are at work, from the footers of their parts.

    That is from when every worker has finished its first part (it warmed up in it) to when one has no
    more; None where there is no such time.
    """
    ends: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for footer in footers:
        ended = datetime.fromisoformat(footer["finished"]).timestamp()
        ends.setdefault((footer["host"], footer["worker"]), []).append((ended, footer["receipt"]["rows"]))
    if not ends:
        return None
    since, until = max(min(own)[0] for own in ends.values()), min(max(own)[0] for own in ends.values())
    if until <= since:
        return None
    done = 0.0
    for own in ends.values():  # A worker predicts its parts one after the other.
        for (start, _), (end, rows) in pairwise(sorted(own)):
            if end > start:
                done += rows * max(0.0, min(end, until) - max(start, since)) / (end - start)
    return done / (until - since)


class Feed:
    """The shards of a run: ``first`` images each, then as many as keep a worker busy for `PART_S`.

    None has more than ``most``. Where ``ends`` is false, there are shards for `RUN_S` from the first
    one that is finished.
    """

    def __init__(self, refs: Iterable[ImageRef], first: int, most: int, ends: bool) -> None:
        self._refs = iter(refs)
        self._first = min(first, most)
        self._most = most
        self._ends = ends
        self._until: float | None = None
        self.images = 0
        self.busy_s = 0.0
        self.failed: Counter[str] = Counter()

    def work(self) -> Iterator[Work]:
        """Yield shards until there are no more images, or the time is up."""
        index = 0
        while not self._is_over() and (refs := tuple(islice(self._refs, self._length()))):
            yield Work(Shard(index, refs))
            index += 1

    def take(self, receipt: Receipt) -> None:
        """Learn from a finished shard."""
        self._until = self._until or time.monotonic() + RUN_S
        self.images += receipt.rows
        self.busy_s += sum(receipt.seconds.values()) - receipt.seconds["read"]
        self.failed.update(receipt.failed)

    def _length(self) -> int:
        wanted = round(PART_S * self.images / self.busy_s) if self.busy_s else 0
        return min(max(self._first, wanted), self._most)

    def _is_over(self) -> bool:
        return not self._ends and self._until is not None and time.monotonic() > self._until


def _run(asked: SampleRun) -> Whole:
    from cnnbatch.terminal.screen import Screen

    os.environ["RAY_ADDRESS"] = "local"  # This machine is measured, not a cluster that it may be part of.
    with TemporaryDirectory(prefix="cnnbatch-bench-") as folder, Screen(quiet=False) as screen:
        run = _Run(asked, Output(folder, Storage()))
        for receipt in run.receipts(screen.note):
            run.feed.take(receipt)
            screen.count(receipt, asked.images)
        return run.found(time.monotonic() - asked.started)


class _Run:
    """One run under way."""

    def __init__(self, asked: SampleRun, output: Output) -> None:
        repeated = RepeatedSource(asked.source, asked.refs)
        refs = islice(repeated.refs(), asked.images)
        self.feed = Feed(refs, _first(asked.job), _most(asked), ends=asked.images is not None)
        self._asked = asked
        self._output = output
        first = tuple(islice(repeated.refs(), len(asked.refs)))
        known = KnownClasses(asked.job, asked.source, partial(shards_of, asked.refs))
        self._store = SettingsStore(asked.job, output, FirstImages(first, lambda: len(first)), known=known)
        known_ways = self._store.remembered()
        self._order = LoadOrder(asked.job, repeated, output, asked.inline, None, known_ways)
        self._ready: Ready | None = None
        self._ray_s = self._start_s = 0.0

    def receipts(self, note: Callable[[str], None]) -> Iterator[Receipt]:
        """Run it; ``note`` is told what a person should know."""
        if self._asked.inline:
            yield from predict_inline(self._order, self.feed.work(), self)
            return
        from cnnbatch.inference.driver.scheduler import Scheduler

        compute = self._asked.job.compute
        with open_pool(compute) as pool:
            self._ray_s = self._passed_s() if chosen_pool(compute) == "ray" else 0.0
            yield from Scheduler(pool, self._order, self, note).predict(self.feed.work(), ())

    def found(self, seconds: float) -> Whole:
        """Return what it showed; it took so many ``seconds``."""
        if self._ready is None:
            raise RuntimeError("a run has ended before its first worker was there")
        settings, feed = self._ready.settings, self.feed
        rows = reader.open_output(self._output.uri).arrow(["key", "bytes", "error"])
        failed = rows.filter(pc.is_valid(rows["error"]))["key"].to_pylist()
        return Whole(
            images=feed.images,
            failed=dict(feed.failed),
            failed_keys=frozenset(own_key(str(key)) for key in failed),
            seconds=seconds,
            ray_s=self._ray_s,
            start_s=self._start_s,
            steady=steady_rate(self._output.footers(sorted(self._output.finished()))),
            busy_s=feed.busy_s / feed.images,
            mean_bytes=pc.mean(rows["bytes"]).as_py() or 0.0,
            settings=settings,
            here=_here(self._asked, str(settings["device"]).partition(":")[0]),
        )

    def sample(self, ready: Ready, workers: int) -> TuningSample | None:
        """Return what a worker is to measure on, as a run does."""
        return self._store.sample(ready, workers)

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        """Keep how a worker runs, as a run does; the first one ends the start-up."""
        if self._ready is None:
            self._ready, self._start_s = ready, self._passed_s()
        return self._store.keep(ready)

    def _passed_s(self) -> float:
        return time.monotonic() - self._asked.started


def _first(job: MapJob) -> int:
    """Return how many images the first parts hold: a batch; on which device, is not known yet."""
    batch = job.compute.batch
    return min(job.task.batch.values()) if batch == "auto" else batch


def _most(asked: SampleRun) -> int:
    """Return how many images a part holds at most."""
    size = asked.job.input.shard_size
    most = asked.job.task.shard_size if size == "auto" else size
    if asked.images is None:
        return most
    _, workers = nodes.bounds(asked.job.compute)
    workers = 1 if asked.inline else workers or os.cpu_count() or 1
    return max(1, min(most, asked.images // (PARTS_A_WORKER * workers)))


def _here(asked: SampleRun, device: str) -> Here:
    from cnnbatch.inference.worker import devices

    pool = "inline" if asked.inline else asked.job.compute.pool
    return Here(
        cores=os.cpu_count() or 1,
        used=machine_for(asked.job.compute.model_copy(update={"pool": pool}), device),
        has_bf16=devices.has_bf16(devices.find_device(asked.job.compute.device)),
        has_openvino=find_spec("openvino") is not None,
    )
