"""Chooses how a network runs on the device that is there: precision, backend, batch and threads.

What the job names is done; what it leaves open is measured by the first worker of each kind of device
(`autotune.measure`) among the candidates, and kept for all others. Where measuring does not pay, a network
runs in eager fp32.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.worker.devices import device_kind, find_device
from cnnbatch.job import MapJob
from cnnbatch.types import Backend, Decoder, Precision, Runtime

if TYPE_CHECKING:
    from cnnbatch.inference.worker.devices import Device

WINDOW_BATCHES = 8
THREADS_OF_DEVICE = 8
"""Threads that decode on a device, at least: what they ask for at a time is one call, and a device has about
as many decoders."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a network runs: decided once for an output, kind of device and precision.

    ``device`` is the kind of device; ``batch`` the largest number of inputs in one forward pass;
    ``window`` the number of images whose inputs are grouped into batches; ``tf32`` lets CUDA multiply
    float32 by its shorter TF32. ``decoder`` is what decodes and prepares plain JPEG: the host, or nvjpeg on
    a CUDA device.
    """

    device: str
    precision: Precision
    batch: int
    window: int
    threads: int
    backend: Backend = "eager"
    tf32: bool = False
    decoder: Decoder = "cpu"

    @property
    def type(self) -> str:
        """The device's type, as torch has it."""
        return self.device.partition(":")[0]

    @property
    def decode_threads(self) -> int:
        """How many threads read ahead of the network: a processor each, or waiting for the device."""
        return max(self.threads, THREADS_OF_DEVICE) if self.decoder == "cuda" else self.threads

    @property
    def key(self) -> str:
        """Under which name an output keeps them."""
        return settings_key(self.device, self.precision)

    def runtime(self) -> Runtime:
        """Return where and how a model runs under these settings."""
        return Runtime(self.type, self.precision, self.backend, self.threads, self.batch)

    def apply(self) -> None:
        """Have torch compute so in this process."""
        torch.set_num_threads(self.threads)
        if self.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.tf32
            torch.backends.cudnn.allow_tf32 = self.tf32

    def with_batch(self, batch: int) -> Settings:
        """Return the same for another number of inputs in a forward pass."""
        return replace(self, batch=batch, window=batch * WINDOW_BATCHES)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings in a record of an output, which also has what was measured."""
        return cls(**{one.name: values[one.name] for one in fields(cls)})


def settings_key(device: str, precision: str) -> str:
    """Return the name under which the settings of a kind of device are kept, in an output's folder too."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', device)}-{precision}"


def choose(job: MapJob, inline: bool, kept: Mapping[str, Any] | None) -> tuple[Settings, bool]:
    """Return how this process runs the job's model, and whether measuring may find a faster way.

    ``kept`` is what the output keeps: ``precision``, and under `settings_key` the settings of each
    kind of device. Without it, what the job names wins; else eager fp32.

    Raises:
        UserError: the job names what is not there, or what its task does not know.
        EnvironmentFault: the output's pictures are decoded by what this device has not.
    """
    compute, kept = job.compute, kept or {}
    device = find_device(compute.device)
    _require_known(job)
    kind = device_kind(device)
    precision = compute.precision if compute.precision != "auto" else kept.get("precision", "fp32")
    known = kept.get(settings_key(kind, precision))
    backend = compute.backend if compute.backend != "auto" else (known or {}).get("backend", "eager")
    batch = compute.batch if compute.batch != "auto" else (known or {}).get("batch") or job.task.batch[device]
    threads = _threads(compute, inline, known or {})
    tf32 = (known or {}).get("tf32", False)
    decoder = _decoder(device, kept)
    settings = Settings(kind, precision, batch, batch * WINDOW_BATCHES, threads, backend, tf32, decoder)
    return settings, known is None and _is_open(job, kept)


def _threads(compute: Compute, inline: bool, known: Mapping[str, Any]) -> int:
    if compute.cpus_per_worker != "auto":
        return compute.cpus_per_worker
    return known.get("threads") or ((os.cpu_count() or 1) if inline else 1)


def _decoder(device: Device, kept: Mapping[str, Any]) -> Decoder:
    """Return what decodes the output's pictures: as its pixels differ, one decoder for all its parts."""
    decoder: Decoder = kept.get("decoder", "cpu")
    if decoder == "cuda" and device != "cuda":
        raise EnvironmentFault(
            f"on {socket.gethostname()} there is no CUDA device, by which this output's pictures are decoded",
            "predict where there is one, or give another output",
        )
    return decoder


def _is_open(job: MapJob, kept: Mapping[str, Any]) -> bool:
    """Say whether the job leaves something to choose that its task has a choice of."""
    precision = job.compute.precision == "auto" and "precision" not in kept and len(job.task.precisions) > 1
    backend = job.compute.backend == "auto" and len(job.task.backends) > 1
    return precision or backend


def _require_known(job: MapJob) -> None:
    """Refuse a backend or a precision that the task would not heed."""
    for name, wanted, known in (
        ("precision", job.compute.precision, job.task.precisions),
        ("backend", job.compute.backend, job.task.backends),
    ):
        if wanted != "auto" and wanted not in known:
            raise UserError(
                f"compute.{name}: expected auto or what the task {job.task.name} knows "
                f"({', '.join(sorted(known))}), got {wanted}"
            )
