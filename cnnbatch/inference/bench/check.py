"""What a run would cost, said before it: a few images are predicted in earnest, the rest is arithmetic.

The sample is a run of its own in this process, into a folder that is thrown away: so it takes every
step that a run takes, and the output stays as it was. Then its stages are timed as `cnnbatch bench` times
them. The price: the model is loaded twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from cnnbatch.errors import EnvironmentFault
from cnnbatch.evaluation.known_classes import KnownClasses
from cnnbatch.humanize import byte_size, decimal, duration
from cnnbatch.inference import fingerprint
from cnnbatch.inference.autotune.store import SettingsStore
from cnnbatch.inference.bench.estimate import Estimate, Measured, estimate
from cnnbatch.inference.bench.listing import ListingCount, WatchedStorage, count, refs_of, shards_of
from cnnbatch.inference.bench.machine import Machine, machine_for
from cnnbatch.inference.bench.stages import Stages, StageSample
from cnnbatch.inference.driver.inline import predict_inline
from cnnbatch.inference.messages import LoadOrder, Ready, Work
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.job import MapJob
from cnnbatch.output import reader
from cnnbatch.output.folder import Output
from cnnbatch.output.plan import shard_size, spread
from cnnbatch.report.lines import result_lines
from cnnbatch.sources import open_source
from cnnbatch.storage import Forbidden, Storage, is_local, normalize, parent, redact
from cnnbatch.types import ImageRef, Shard, Source

SAMPLE = 8
LISTING_S = 10.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: ``seen`` has a line an image of the sample, ``settings`` how a run would go."""

    job: MapJob
    finished: int
    seen: Sequence[str]
    settings: Mapping[str, Any]
    counted: ListingCount
    measured: Measured
    machine: Machine
    estimate: Estimate


def check(job: MapJob, images: int = SAMPLE, listing_s: float = LISTING_S) -> Checked:
    """Try a job on a few images, write nothing that stays, and return what a run of it costs.

    Raises:
        UserError: as a run does, also for an output of another job.
        EnvironmentFault: the input, the output or the model can't be had.
    """
    output = Output(normalize(job.output.url), Storage(job.output.storage))
    storage = WatchedStorage(job.input.storage)
    source = open_source(job.input, storage)
    finished = _finished(output)
    if finished:
        output.require_identity(fingerprint.of_job(job))
    known = KnownClasses(job, source, lambda: shards_of(refs_of(source, job.input)))
    known.require_early()
    counted = count(source, job.input, storage, listing_s)
    with TemporaryDirectory(prefix="cnnbatch-check-") as folder:
        sample = _Sample(job, source, spread(counted.first, images), known)
        measured = sample.measure(Output(folder, Storage()), output if finished else None)
    machine = machine_for(job.compute, sample.device)
    size = shard_size(job.input.shard_size, job.task.shard_size)
    whole = estimate(counted, measured, machine, size, source.truth_schema is not None)
    return Checked(job, finished, sample.seen, sample.settings, counted, measured, machine, whole)


def _finished(output: Output) -> int:
    """Return how many parts the output has, once it is sure that it can be written and listed."""
    uri = output.path("_job", f"check-{uuid4().hex}")
    with _no_new_folders(uri):
        output.storage.create(uri, b"")
        output.storage.delete(uri)
    try:
        return len(output.finished())
    except Forbidden as error:
        raise EnvironmentFault(
            f"the output may not be listed: {error}", "give the right to list it"
        ) from None


@contextmanager
def _no_new_folders(uri: str) -> Iterator[None]:
    """Remove the local folders that the block makes on the way to ``uri``, if they are empty again."""
    new, folder = [], parent(uri)
    while is_local(uri) and not os.path.lexists(folder):
        new.append(folder)
        folder = parent(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in new:
                os.rmdir(folder)


class _Sample:
    """A few images of a job: predicted to see what comes of each, then measured stage by stage."""

    def __init__(self, job: MapJob, source: Source, refs: tuple[ImageRef, ...], known: KnownClasses) -> None:
        self._job, self._source, self._refs, self._known = _as_worker(job), source, refs, known
        self._made: Output | None = None
        self.seen: list[str] = []
        self.settings: Mapping[str, Any] = {}

    @property
    def device(self) -> str:
        """The kind of device that the model is on."""
        return str(self.settings["device"]).partition(":")[0]

    def measure(self, output: Output, made: Output | None) -> Measured:
        """Predict the sample into ``output`` as a run does, then time the stages on what of it went well.

        ``made`` is what a run has made before: it goes on with the same settings.
        """
        self._made = made
        store = SettingsStore(self._job, made or output)
        kept = store.kept() if made else None
        order = LoadOrder(self._job, self._source, output, True, kept, store.remembered())
        work = [Work(Shard(0, self._refs))] if self._refs else []
        for _ in predict_inline(order, work, self):
            self.seen = list(result_lines(output.uri, output.storage))
        memory_bytes = peak_rss_bytes()
        rows = reader.open_output(output.uri).arrow(["error", "bytes"]).to_pylist() if work else []
        sizes = [row["bytes"] for row in rows if row["bytes"] is not None]
        good = [ref for ref, row in zip(self._refs, rows, strict=True) if row["error"] is None]
        stages = self._stages(good) if good else None
        return Measured(
            images=len(self._refs),
            failed=len(rows) - len(good),
            mean_bytes=sum(sizes) / max(len(sizes), 1),
            seconds={} if stages is None else stages.seconds,
            memory_bytes=memory_bytes,
            reading=0.0 if stages is None else stages.reading,
        )

    def _stages(self, good: Sequence[ImageRef]) -> Stages:
        from cnnbatch.inference.bench.alone import measure_here
        from cnnbatch.inference.worker.readahead import READ_THREADS

        # On an accelerator a batch that is not full costs nearly what a full one does.
        count = len(good) if self.device == "cpu" else max(len(good), int(self.settings["batch"]))
        refs = tuple(islice(cycle(good), count))
        return measure_here(StageSample(self._job, self._source, refs, self.settings, READ_THREADS))

    def sample(self, ready: Ready, workers: int) -> None:
        """Measure no other way through the network: a few images are tried as a run would begin."""

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        """Note how the model runs."""
        self._known.require(ready.classes)
        if self._made:
            self._made.require_identity(ready.identity)
        self.settings = ready.settings
        return ready.settings


def _as_worker(job: MapJob) -> MapJob:
    """Return the job with the threads that each of its workers would have."""
    if job.compute.cpus_per_worker != "auto":
        return job
    return job.model_copy(update={"compute": job.compute.model_copy(update={"cpus_per_worker": 1})})


def lines(found: Checked, price_per_hour: float | None = None) -> Iterator[str]:
    """Yield what a check found, for people."""
    cost, measured, settings = found.estimate, found.measured, found.settings
    least = "at least " if cost.at_least else ""
    yield from found.seen
    yield (
        f"{measured.images - measured.failed:,} of {measured.images:,} images were predicted on "
        f"{settings['device']} in {settings['precision']}, in batches of at most {settings['batch']}"
    )
    if found.finished:
        output = redact(normalize(found.job.output.url))
        yield f"finished parts in {output}: {found.finished:,}; a run keeps them, and they count here, too"
    yield "a run would take, on this machine:"
    yield f"  images    {least}{cost.images:,}{_why_at_least(found)}"
    yield f"  reading   {least}{byte_size(cost.read_bytes)}, {_why_bytes(found.counted)}"
    yield f"  requests  {least}{_requests(cost.requests)}"
    yield f"  parts     {least}{cost.parts:,}"
    yield f"  time      {_time(found, least)}"
    if measured.seconds:
        yield f"  an image  {_stages(measured.seconds)}"
    yield f"  memory    {byte_size(cost.memory_bytes)} a worker, by the sample; full windows hold more"
    if price_per_hour is not None:
        yield f"  money     {_money(cost, price_per_hour, least)}"


def _why_at_least(found: Checked) -> str:
    if not found.estimate.at_least:
        return ""
    return f": the listing goes on after {found.counted.seconds:.0f} s ({found.counted.objects:,} objects)"


def _why_bytes(counted: ListingCount) -> str:
    if counted.sized == counted.images:
        return "by the sizes in the listing"
    if counted.sized:
        return f"by the sizes of {counted.sized:,} in the listing, the others as the sample's mean"
    return "by the sample's mean"


def _requests(requests: Mapping[str, int]) -> str:
    words = {
        "list": "to list, one for 1,000 objects",
        "read": "to read, one an image",
        "parts": "to write parts, one each",
        "truth": "to write truth, one a part",
        "plan": "to write plan pages and read them again",
    }
    each = "; ".join(f"{number:,} {words[name]}" for name, number in requests.items() if number)
    return f"{sum(requests.values()):,}: {each}"


def _time(found: Checked, least: str) -> str:
    cost, machine = found.estimate, found.estimate.machine
    if cost.seconds is None or cost.slowest is None:
        return "unknown: no image of the sample could be predicted"
    here = f"{machine.devices} of its accelerators" if machine.devices else f"{machine.cores} of its cores"
    rate = decimal(cost.rates[cost.slowest])
    return (
        f"{least}{duration(cost.seconds)}, start-up apart: at most {rate} images/s with {here}, "
        f"bounded by {cost.slowest}{_idle(found)}"
    )


def _idle(found: Checked) -> str:
    if found.estimate.machine.workers == found.machine.workers:
        return ""
    return f"; a smaller input.shard_size would give all {found.machine.workers} workers parts to do"


def _stages(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {duration(spent)}" for stage, spent in seconds.items())


def _money(cost: Estimate, price_per_hour: float, least: str) -> str:
    money = cost.money(price_per_hour)
    if money is None:
        return "unknown, as the time"
    return (
        f"{least}{decimal(money)} at {decimal(price_per_hour)} an hour of this machine; "
        "requests and traffic cost what the storage's provider asks"
    )
