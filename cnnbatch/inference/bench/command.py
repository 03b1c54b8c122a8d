"""How fast a job goes on this machine, what bounds it, and what would help.

The whole is measured first, since it decides how the network runs; then each stage alone under these
settings. A machine's speed drifts between the two, by some percent and more where others share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from cnnbatch.errors import UserError
from cnnbatch.inference.bench import alone, throughput
from cnnbatch.inference.bench.estimate import rates
from cnnbatch.inference.bench.listing import refs_of
from cnnbatch.inference.bench.machine import Machine
from cnnbatch.inference.bench.stages import Stages, StageSample
from cnnbatch.inference.bench.throughput import SampleRun, Whole
from cnnbatch.inference.driver.pools import runs_inline
from cnnbatch.inference.messages import STAGES
from cnnbatch.job import MapJob
from cnnbatch.output.plan import spread
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage, normalize, redact
from cnnbatch.types import ImageRef

LISTED_AT_MOST = 10_000  # images that are different; after them they come again
STAGES_S = 4.0  # what the stages may take of each core, once
ENCODED_LIMIT_BYTES = 128 * 2**20  # read and held at once, as in a worker
STAGE_OF = {"reading": "read", "decoding": "decode", "the network": "forward", "writing": "write"}


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured. ``images`` are those that the input has; at least, where it has ``more``."""

    job: MapJob
    images: int
    more: bool
    whole: Whole
    stages: Stages

    @property
    def machine(self) -> Machine:
        """What the run used of this machine."""
        return self.whole.here.used

    @property
    def rates(self) -> dict[str, float]:
        """The most images a second by what bounds them; the least of them is the ceiling."""
        return rates(self.stages.seconds, self.machine, reading=self.stages.reading)

    @property
    def bound(self) -> str:
        """What bounds the rate: a part of the machine, as `estimate.rates` names it."""
        return min(self.rates, key=lambda name: self.rates[name])

    @property
    def ceiling(self) -> float:
        """The most images a second that the stages allow."""
        return self.rates[self.bound]

    @property
    def bottleneck(self) -> str:
        """The stage that bounds the rate; where all share the cores, the one that takes most of them."""
        if self.bound == "the processor":
            return max(STAGES, key=self.share)
        if self.bound == "decoding" and self.stages.seconds["prepare"] > self.stages.seconds["decode"]:
            return "prepare"
        return STAGE_OF.get(self.bound, self.bound)

    @property
    def reached(self) -> float | None:
        """The steady rate as a part of the ceiling."""
        return None if self.whole.steady is None else self.whole.steady / self.ceiling

    def share(self, stage: str) -> float:
        """Return what part of the processor's time for an image a stage takes; of use on a CPU only."""
        return self.stages.processor[stage] / sum(self.stages.processor.values())

    def alone(self, stage: str) -> float:
        """Return images a second of one stage, with all that it may use of this machine."""
        machine, seconds = self.machine, self.stages.seconds[stage]
        by_threads = _most_at_once(machine)[stage] / max(seconds, 1e-9)
        if stage != "read" or machine.devices:
            return by_threads
        return min(by_threads, machine.cores / max(self.stages.reading, 1e-9))


def _most_at_once(machine: Machine) -> Mapping[str, int]:
    """Return how many images each stage can have in hand."""
    if not machine.devices:
        return {**dict.fromkeys(STAGES, machine.cores), "read": machine.readers}
    return {
        "read": machine.readers,
        "decode": machine.cores,
        "prepare": machine.cores,
        "forward": machine.devices,
        "rows": machine.workers,
        "write": machine.workers,
    }


def bench(job: MapJob, images: int | None, note: Callable[[str], None]) -> Bench:
    """Measure a job on this machine; ``images`` of the run, None for as many as half a minute takes.

    ``note`` is told what goes on.

    Raises:
        UserError: as a run does, and where there is no image to measure on.
        EnvironmentFault: the input or the model can't be had.
    """
    source = open_source(job.input, Storage(job.input.storage))
    refs = tuple(islice(refs_of(source, job.input), LISTED_AT_MOST))
    if not refs:
        raise UserError(f"expected images to measure on, got none in {_input(job)}")
    inline = runs_inline(job.compute, len(refs))
    found = throughput.measure(SampleRun(job, source, refs, images, inline, time.monotonic()))
    sample = StageSample(job, source, _sample(refs, found), found.settings, _readers(found.here.used))
    processes = _processes(found.here.used)
    at_once = f", in {processes} processes at once" if processes > 1 else ""
    note(f"the run is over; now each stage alone, on {len(sample.refs):,} images{at_once}")
    stages = alone.measure(sample, processes)
    return Bench(job, len(refs), len(refs) == LISTED_AT_MOST, found, stages)


def _input(job: MapJob) -> str:
    urls = [job.input.url] if isinstance(job.input.url, str) else job.input.url
    return ", ".join(redact(normalize(url)) for url in urls)


def _sample(refs: Sequence[ImageRef], found: Whole) -> tuple[ImageRef, ...]:
    """Return images from all over those that were predicted: whole batches, at most a window."""
    good = [ref for ref in refs[: found.images] if ref.key not in found.failed_keys]
    if not good:
        codes = ", ".join(f"{code} {count:,}" for code, count in found.failed.items())
        raise UserError(
            f"expected images to measure on, but none of {found.images:,} could be predicted: {codes}\n"
            "  what to do: `cnnbatch check JOB` says why of each"
        )
    batch, window = int(found.settings["batch"]), int(found.settings["window"])
    fits = min(STAGES_S / max(found.busy_s, 1e-9), ENCODED_LIMIT_BYTES / max(found.mean_bytes, 1.0), window)
    count = max(int(fits) // batch, 1) * batch
    return tuple(islice(cycle(spread(good, count)), count))


def _processes(machine: Machine) -> int:
    return 1 if machine.devices else machine.cores


def _readers(machine: Machine) -> int:
    return max(1, machine.readers // _processes(machine))
