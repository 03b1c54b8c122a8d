"""Which device a process has, and what it can do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from cnnbatch.errors import UserError

Device = Literal["cuda", "mps", "cpu"]


_LACKING = re.compile(r"operator '([^']+)' is not currently supported on the MPS backend")


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
    """Return the device with its model or its instructions, by which settings are kept."""
    if device == "cuda":
        return f"cuda:{torch.cuda.get_device_name()}"
    if device == "mps":
        return device
    return f"cpu:{torch.backends.cpu.get_cpu_capability()}{' bf16' if has_bf16(device) else ''}"


def has_bf16(device: Device) -> bool:
    """Say whether the processor computes in bfloat16, rather than emulating it."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def operators_on_cpu() -> Iterator[list[str]]:
    """Collect the operators that an Apple GPU lacks, which torch runs on the CPU, warning once of each."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        yield found
    for one in caught:
        if named := _LACKING.search(str(one.message)):
            found.append(named[1])
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
