"""What each stage of a job takes alone, on one thread, in as many processes as the job has cores.

All at once, since cores share caches and memory: what one of them does alone is no ceiling for all.
An accelerator is measured from one process; what its other cores would do to that one is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnnbatch.inference.bench.alone import Stages
from cnnbatch.inference.bench.processes import in_new_processes

if TYPE_CHECKING:
    from cnnbatch.inference.bench.alone import StageSample


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

    return measure_here(sample)
