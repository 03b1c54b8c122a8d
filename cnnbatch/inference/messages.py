"""What passes between the driver and its workers: orders, shards, samples, answers and faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from cnnbatch.config.section import Batch, Count
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.job import MapJob
from cnnbatch.output.folder import Output
from cnnbatch.types import Backend, Decoder, Failure, Precision, Shard, Source

STAGES = ("read", "decode", "prepare", "forward", "rows", "write")
"""What a worker does with an image, one after the other; a receipt has the seconds of each."""


def as_error(fault: Fault) -> UserError | EnvironmentFault:
    """Return the exception that a fault of a worker is to the person who runs the job."""
    return UserError(fault.what) if fault.kind == "user" else EnvironmentFault(fault.what, fault.mend)


def failure_of(hung: bool, batch_timeout_s: float) -> Failure:
    """Return the failure of an image that ended its process when it was tried alone."""
    if hung:
        return Failure("predict", "timeout", f"no result within {batch_timeout_s:g} s, twice")
    return Failure("predict", "crash", "the process ended while it was at this image, twice")


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What a worker needs to load: ``kept`` is what the output keeps.

    ``remembered`` is what earlier jobs have found for the same task, under whatever conditions.
    """

    job: MapJob
    source: Source
    output: Output
    inline: bool
    kept: Mapping[str, Any] | None
    remembered: Sequence[RememberedSettings] = ()


_Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_Word = Annotated[str, Field(max_length=200)]


@dataclass(frozen=True, slots=True)
class RememberedSettings:
    """How a network ran best on a machine, as an earlier job has found; the user's cache keeps it.

    It holds under the same ``conditions`` (device, versions, what was left open) for the same ``network``, a
    digest of its identity. ``found`` is how: by measuring all ways or, where that would not have paid, by
    the prior; for ``enough`` images a worker or more measuring may find more, None: it can't. ``rate`` and
    ``reference_rate``, eager fp32's, are inputs a second of one worker; ``agreement`` is what the guard
    measured. The types are also what is required of a file of the cache.
    """

    conditions: Annotated[Mapping[_Word, _Word], Field(max_length=30)]
    network: _Word
    precision: Precision
    backend: Backend
    batch: Batch
    tf32: bool
    decoder: Decoder
    found: Literal["measured", "prior"]
    on: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    enough: Count | None = None
    rate: _Rate | None = None
    reference_rate: _Rate | None = None
    agreement: Annotated[
        Mapping[_Word, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=10)
    ] = field(default_factory=dict)

    def why(self) -> str:
        """Return how they were found, and when."""
        how = "measured" if self.found == "measured" else "chosen by prior"
        return f"{how} on this machine on {self.on}"

    def suffices(self, images: int, workers: int) -> bool:
        """Say whether measuring anew would find no more, or take too long for so many images."""
        return self.enough is None or images < self.enough * max(1, workers)


class TunedSettings(Protocol):
    """What decides how the workers of a run go through the network; see `inference.autotune.store`."""

    def sample(self, ready: Ready, workers: int) -> TuningSample | None:
        """Return what a worker is to measure on before it predicts, if anything."""

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        """Keep how a worker runs; return what is kept."""


@dataclass(frozen=True, slots=True)
class Work:
    """A shard to predict; ``condemned`` are the images that failed alone, by position.

    ``again`` stands for a part that is there: its rows of changed images are predicted again, and those
    that failed with one of these codes; the others stay.
    """

    shard: Shard
    condemned: Mapping[int, Failure] = field(default_factory=dict)
    again: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """That a shard was given back before any of its images was predicted."""


@dataclass(frozen=True, slots=True)
class TuningSample:
    """A few images of a job, on which the first worker of a kind of device measures how to run it.

    ``images`` are how many the job has at least, ``workers`` how many share them: so much may it take.
    ``precision_open`` where the output has no precision yet, and the job names none; ``decoder_open`` where
    it has no decoder yet.
    """

    shard: Shard
    images: int
    workers: int
    precision_open: bool
    decoder_open: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker process says once its model is loaded.

    ``settings`` are `worker.settings.Settings` as JSON values, ``key`` under what the output keeps them;
    ``open`` where measuring may find better ones; ``trials`` what measuring found, as JSON values;
    ``remembered`` is by what they were taken without measuring, ``found`` what is to be remembered of it;
    ``operators_on_cpu`` what its accelerator lacks; ``identity`` is what can change a row; ``classes`` are
    the model's, a `truth.classes.ModelClasses` as JSON values, where it has any; ``rss_bytes`` is what
    the process took, ``left_bytes`` what its host or cgroup still has; ``notes`` are the model's sentences
    for the person who runs the job.
    """

    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    host: str
    journal: str
    rss_bytes: int
    left_bytes: int
    classes: Mapping[str, Any] | None = None
    key: str = ""
    open: bool = False
    trials: Sequence[Mapping[str, Any]] = ()
    operators_on_cpu: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remembered: RememberedSettings | None = None
    found: RememberedSettings | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a worker has no result, as a value, so that it travels and no traceback is lost with it.

    ``predict``: the model raised on the images at ``positions``. ``environment``: the machine or
    the storage, with what to mend. ``user``: a mistake in the job.
    """

    kind: Literal["predict", "environment", "user"]
    what: str
    mend: str = ""
    positions: tuple[int, ...] = ()
