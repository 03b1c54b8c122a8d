"""Tells a device that has no memory left from everything else that can go wrong on it."""

from __future__ import annotations

import re

# cuBLAS and cuDNN allocate beside torch, and say so in words of their own: also that their handle could
# not be made, which is what a full device does to the first call.
_WORDS = re.compile(
    r"(CUDA|HIP|MPS|XPU)\b.{0,40}\bout of memory"
    r"|CU(BLAS|DNN|FFT|SOLVER|SPARSE)_\w*ALLOC(ATION)?_FAILED"
    r"|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED"
)


def is_exhausted(error: BaseException) -> bool:
    """Say whether ``error`` means that the device's memory did not suffice."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def release() -> None:
    """Give back to the device what torch keeps for later; does nothing on a CPU."""
    import torch

    torch.accelerator.empty_cache()
