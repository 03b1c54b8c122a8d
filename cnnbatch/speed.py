"""Chooses how a network runs on the device that is there: precision, batch and threads."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from cnnbatch.errors import UserError
from cnnbatch.job import MapJob
from cnnbatch.tasks import Precision, Runtime

Device = Literal["cuda", "mps", "cpu"]
FEW_IMAGES = 100
WINDOW_BATCHES = 8
# malloc.h: M_ARENA_MAX (one arena only can grow by brk), M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
MALLOC_OPTIONS = {-8: 1, -4: 0, -1: 2**30, -2: 2**26}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is settled once for an output and kind of device, and kept in ``_job/settings.json``.

    ``batch`` is the largest number of inputs in one forward pass; ``window`` the number of images
    whose inputs are grouped into batches.
    """

    device: str
    precision: Precision
    batch: int
    window: int
    threads: int
    backend: str = "eager"

    def runtime(self) -> Runtime:
        """Return where and how a model runs under these settings."""
        return Runtime(self.device.split(":")[0], self.precision, self.backend, self.threads)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


def find_device(wanted: str) -> Device:
    """Return the device of this process: torch decides, whatever Ray counted.

    Raises UserError where ``wanted`` is not ``auto`` and not there.
    """
    there: list[Device] = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if wanted == "auto":
        return there[0]
    for device in there:
        if device == wanted:
            return device
    raise UserError(
        f"compute.device: expected one that torch finds here ({', '.join(there)}), got {wanted}\n"
        "  what to do: leave it at auto, or check the driver of the accelerator"
    )


def device_kind(device: Device) -> str:
    """Return the device with its model, by which settings are kept."""
    return f"cuda:{torch.cuda.get_device_name()}" if device == "cuda" else device


def has_bf16(device: Device) -> bool:
    """Say whether the processor computes in bfloat16, rather than emulating it."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, where its C library is glibc.

    A forward pass frees and asks for the same tens of megabytes again and again; by default each
    time they go back to the kernel, and every page of them is faulted in anew (measured for
    MobileNetV2: 1,300 page faults and a quarter of the time an image).
    """
    if not sys.platform.startswith("linux"):
        return
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        for option, value in MALLOC_OPTIONS.items():
            allocator(option, value)


def choose(job: MapJob, images_at_least: int, inline: bool, kept: Mapping[str, Any] | None) -> Settings:
    """Settle how this process runs the job's model.

    What the job names wins; then what ``kept`` (the output's settings by kind of device, and its
    one precision) says; then fp32 below `FEW_IMAGES` images and bf16 where the processor has it.
    """
    compute = job.compute
    device = find_device(compute.device)
    kind = device_kind(device)
    known = dict((kept or {}).get(kind, {}))
    many = images_at_least >= FEW_IMAGES
    best: Precision = "bf16" if many and has_bf16(device) else "fp32"
    precision = compute.precision if compute.precision != "auto" else (kept or {}).get("precision", best)
    batch = compute.batch if compute.batch != "auto" else known.get("batch") or job.task.batch[device]
    threads = known.get("threads") or ((os.cpu_count() or 1) if inline else 1)
    if compute.cpus_per_worker != "auto":
        threads = compute.cpus_per_worker
    return Settings(kind, precision, batch, batch * WINDOW_BATCHES, threads)
