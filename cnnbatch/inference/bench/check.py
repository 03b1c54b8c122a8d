"""What a run would cost, said before it: a few images are predicted in earnest, the rest is arithmetic.

The sample is a run of its own in this process, into a folder that is thrown away: so it takes every
step that a run takes, and the output stays as it was. The price: the sample is predicted twice, since
the first batch of a process is slower than any later one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from uuid import uuid4

from cnnbatch.cluster import nodes
from cnnbatch.config.compute import Compute
from cnnbatch.config.input import Input
from cnnbatch.errors import EnvironmentFault
from cnnbatch.evaluation.known_classes import KnownClasses
from cnnbatch.humanize import byte_size, decimal, duration
from cnnbatch.inference import fingerprint
from cnnbatch.inference.autotune.store import SettingsStore
from cnnbatch.inference.bench.estimate import Estimate, ListingCount, Machine, Measured, estimate
from cnnbatch.inference.driver.inline import predict_inline
from cnnbatch.inference.messages import LoadOrder, Ready, Work
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.job import MapJob
from cnnbatch.output import plan, reader
from cnnbatch.output.folder import Output
from cnnbatch.output.plan import spread
from cnnbatch.report.lines import seen
from cnnbatch.sources import open_source
from cnnbatch.storage import Entry, Forbidden, Storage, is_local, normalize, parent, redact
from cnnbatch.types import ImageRef, Receipt, Shard, Source, Span

SAMPLE = 8
LISTING_S = 10.0
SHARD = 1000
"""Images of which the ground truth is read at once."""


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
    storage = _Watched(job.input.storage)
    source = open_source(job.input, storage)
    finished = _finished(output)
    if finished:
        output.require_identity(fingerprint.of_job(job))
    known = KnownClasses(job, source, lambda: _shards(source, job.input))
    known.require_early()
    counted = count(source, job.input, storage, listing_s)
    with TemporaryDirectory(prefix="cnnbatch-check-") as folder:
        trial = _Trial(output if finished else None, Output(folder, Storage()), spread(counted.first, images))
        measured = trial.run(job, source, known)
    machine = machine_for(job.compute, trial.device)
    size = job.task.shard_size if job.input.shard_size == "auto" else job.input.shard_size
    whole = estimate(counted, measured, machine, size, source.truth_schema is not None)
    return Checked(job, finished, trial.seen, trial.settings, counted, measured, machine, whole)


def _shards(source: Source, chosen: Input) -> Iterator[Shard]:
    return plan.cut(plan.select(source.refs(), chosen.sample, chosen.limit), lambda index: SHARD)


def count(source: Source, chosen: Input, storage: _Watched, seconds: float) -> ListingCount:
    """Count the images that a job would take, as far as the listing comes in so many ``seconds``."""
    found, started, before = ListingCount(), time.monotonic(), storage.objects
    storage.ends = started + seconds
    try:
        for ref in plan.select(source.refs(), chosen.sample, chosen.limit):
            found.add(ref, storage.size_of(ref))
            storage.require_time()
        found.complete = True
    except _TimeIsUp:
        pass
    finally:
        storage.ends = math.inf
    return replace(found, seconds=time.monotonic() - started, objects=storage.objects - before)


class _TimeIsUp(Exception):
    """The listing has had its time."""


class _Watched(Storage):
    """A storage that notes what it lists, and may do so for a time only."""

    ends = math.inf
    objects = 0
    _last: Entry | None = None

    def list(self, uri: str, after: str | None = None) -> Iterator[Entry]:
        for entry in super().list(uri, after):
            self.require_time()
            self.objects += 1
            self._last = entry
            yield entry

    def head(self, uri: str) -> Entry:
        self._last = super().head(uri)
        return self._last

    def open(self, uri: str) -> BinaryIO:
        self.require_time()
        return super().open(uri)

    def require_time(self) -> None:
        if time.monotonic() > self.ends:
            raise _TimeIsUp

    def size_of(self, ref: ImageRef) -> int | None:
        """Return the size of the image that was listed last."""
        if ref.at is not None:
            return ref.at.length if isinstance(ref.at, Span) else None
        return self._last.size if self._last and self._last.uri == ref.uri else None


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


class _Trial:
    """The sample's run: once to see what comes of each image, and once more to take the time."""

    def __init__(self, made: Output | None, output: Output, sample: tuple[ImageRef, ...]) -> None:
        self._made = made
        self._output = output
        self._sample = sample
        self.seen: list[str] = []
        self.settings: Mapping[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._known: KnownClasses | None = None

    @property
    def device(self) -> str:
        """The kind of device that the model is on."""
        return str(self.settings["device"]).partition(":")[0]

    def run(self, job: MapJob, source: Source, known: KnownClasses) -> Measured:
        """Predict the sample as a worker does; ``known`` is asked of the model as in a run."""
        self._known = known
        kept = SettingsStore(job, self._made).kept() if self._made else None
        order = LoadOrder(_as_worker(job), source, self._output, True, kept)
        receipts = list(predict_inline(order, self._works(), self))
        sizes = [row["bytes"] for row in self._rows if row["bytes"] is not None]
        return Measured(
            images=len(self._sample),
            failed=sum(row["error"] is not None for row in self._rows),
            mean_bytes=sum(sizes) / max(len(sizes), 1),
            seconds=self._seconds(receipts[1]) if len(receipts) > 1 else {},
            memory_bytes=peak_rss_bytes(),
        )

    def sample(self, ready: Ready, workers: int) -> None:
        """Measure nothing: a few images are tried as a run would begin."""

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        """Note how the model runs."""
        if self._known is not None:
            self._known.require(ready.classes)
        if self._made:
            self._made.require_identity(ready.identity)
        self.settings = ready.settings
        return ready.settings

    def _works(self) -> Iterator[Work]:
        if not self._sample:
            return
        yield Work(Shard(0, self._sample))
        self.seen = list(seen(self._output.uri, self._output.storage))
        self._rows = reader.open_output(self._output.uri).arrow(["error", "bytes"]).to_pylist()
        good = [ref for ref, row in zip(self._sample, self._rows, strict=True) if row["error"] is None]
        if good:
            yield Work(Shard(1, tuple(islice(cycle(good), self._enough(len(good))))))

    def _enough(self, good: int) -> int:
        """Return how many images to time: a batch that is not full costs nearly what a full one does."""
        batch = int(self.settings["batch"])
        return max(good, min(batch, 2 * good) if self.device == "cpu" else batch)

    def _seconds(self, receipt: Receipt) -> dict[str, float]:
        """Return the seconds an image by stage; on a CPU a forward pass takes those of all its threads."""
        seconds = dict(receipt.seconds)
        if self.device == "cpu":
            seconds["forward"] *= self.settings["threads"]
        return {stage: spent / receipt.rows for stage, spent in seconds.items()}


def _as_worker(job: MapJob) -> MapJob:
    """Return the job with the threads that each of its workers would have."""
    if job.compute.cpus_per_worker != "auto":
        return job
    return job.model_copy(update={"compute": job.compute.model_copy(update={"cpus_per_worker": 1})})


def machine_for(compute: Compute, device: str) -> Machine:
    """Return what a run of ``compute`` uses of this machine, where the model is on ``device``."""
    import torch

    from cnnbatch.inference.worker.readahead import READ_THREADS

    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count() if device == "cuda" else 0
    here = nodes.Node("", "here", cores, gpus)
    each = nodes.share(compute, [here])
    _, most = nodes.bounds(compute)
    workers = max(1, min(each.fits(here), cores if most is None else most))
    devices = min(gpus, math.ceil(workers * each.gpus)) if device == "cuda" else int(device != "cpu")
    if compute.pool == "inline":
        threads = cores if compute.cpus_per_worker == "auto" else min(cores, compute.cpus_per_worker)
        return Machine(threads, 1, min(devices, 1), READ_THREADS)
    return Machine(min(cores, workers * each.cpus), workers, devices, READ_THREADS * workers)


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
