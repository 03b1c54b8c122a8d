"""What each stage of a job takes alone, on one thread, in as many processes as the job has cores.

All at once, since cores share caches and memory: what one of them does alone is no ceiling for all.
An accelerator is measured from one process; what its other cores would do to that one is not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbatch.inference.bench.processes import in_new_processes
from cnnbatch.inference.worker import malloc
from cnnbatch.job import MapJob
from cnnbatch.types import ImageRef, Source


@dataclass(frozen=True, slots=True)
class StageSample:
    """Which images to measure on, and how: ``settings`` are `speed.Settings` as JSON values.

    ``readers`` is how many images a process reads side by side.
    """

    job: MapJob
    source: Source
    refs: tuple[ImageRef, ...]
    settings: Mapping[str, Any]
    readers: int


@dataclass(frozen=True, slots=True)
class Stages:
    """What an image takes: ``seconds`` by stage, as `estimate.Measured` has them.

    ``reading`` is the processor's part of ``read``. Of the ``images`` measured, ``failed`` were left out
    behind the stage that refused them. An image makes so many ``inputs`` of the network; ``pixels`` are
    its own, ``input_pixels`` those that reach the network. A process was ``given`` this part of a core
    that it asked for; what is missing, others of this machine had.
    """

    seconds: Mapping[str, float]
    reading: float
    images: int
    failed: int
    inputs: float
    pixels: float
    input_pixels: float
    given: float

    @property
    def processor(self) -> dict[str, float]:
        """Seconds of a processor by stage; on an accelerator ``forward`` is the device's."""
        return {**self.seconds, "read": self.reading}


def measure(sample: StageSample, processes: int) -> Stages:
    """Measure the stages in so many processes at once and return their mean.

    Raises:
        UserError, EnvironmentFault: as a worker does; also where no image comes through.
    """
    return mean(in_new_processes(_alone, sample, processes))


def mean(found: Sequence[Stages]) -> Stages:
    """Return the mean over processes, or over times: a machine's speed drifts."""
    count, first = len(found), found[0]
    return Stages(
        seconds={stage: sum(one.seconds[stage] for one in found) / count for stage in first.seconds},
        reading=sum(one.reading for one in found) / count,
        images=first.images,
        failed=max(one.failed for one in found),
        inputs=first.inputs,
        pixels=first.pixels,
        input_pixels=first.input_pixels,
        given=sum(one.given for one in found) / count,
    )


def _alone(sample: StageSample) -> Stages:
    from cnnbatch.inference.bench.alone import measure_here

    malloc.keep_freed_memory()
    return measure_here(sample)
