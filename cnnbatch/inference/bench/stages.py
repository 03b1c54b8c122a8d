"""What the stages of a job are measured on, and what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbatch.job import MapJob
from cnnbatch.types import ImageRef, Source


@dataclass(frozen=True, slots=True)
class StageSample:
    """Which images to measure on, and how: ``settings`` are `worker.settings.Settings` as JSON values.

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
