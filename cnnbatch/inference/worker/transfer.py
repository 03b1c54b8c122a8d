"""How batches come to the device and their outputs back: at once, or while it computes others.

`Overlapped` keeps a CUDA device at work while the host gathers inputs and waits for outputs. The price:
a batch more in either memory, and errors that show up to one batch late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from cnnbatch.inference.worker.device_memory import is_exhausted
from cnnbatch.types import Prepared


class Transfer(Protocol):
    """Brings batches and fetches outputs, ``depth`` batches ahead of the device and as many behind it."""

    depth: int

    def bring(self, prepared: Sequence[Prepared]) -> Callable[[], Tensor]:
        """Begin to gather inputs of one shape; the call that is returned gives them as (N, 3, H, W)."""

    def fetch(self, outputs: Any) -> Callable[[], list[Any]]:
        """Begin to fetch a dict or tuple of first dimension N; the call gives N of them, on the host."""

    def close(self) -> None:
        """End the threads."""


def transfer_for(device: str) -> Transfer:
    """Return the way for ``device`` (``cuda``, ``mps``, ``cpu``, also with a name behind it)."""
    return Overlapped() if device.startswith("cuda") else Direct()


class Direct:
    """Gathers a batch when it is asked for, and leaves it to the model to move it; waits for outputs."""

    depth = 0

    def bring(self, prepared: Sequence[Prepared]) -> Callable[[], Tensor]:
        """Gather nothing before the call."""
        return partial(stack, prepared)

    def fetch(self, outputs: Any) -> Callable[[], list[Any]]:
        """Fetch all before returning."""
        found = split(outputs)
        return lambda: found

    def close(self) -> None:
        """Do nothing."""


class Overlapped:
    """Gathers a batch in a thread, copies it in a stream of its own, and waits for outputs when asked.

    The memory that copies begin and end in is page-locked; torch keeps it for later batches, and hands
    it out again only once the copies are done. Outputs are copied in the computing stream: they are
    small, and what computes the next batch may write over them.
    """

    depth = 1

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, "bring")

    def bring(self, prepared: Sequence[Prepared]) -> Callable[[], Tensor]:
        """Begin now, beside what the device computes."""
        return partial(self._arrived, self._thread.submit(self._copied, prepared))

    def fetch(self, outputs: Any) -> Callable[[], list[Any]]:
        """Queue the copies behind the computation; the call waits for them without taking the processor."""
        leaving = _leaving(outputs)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()
        return partial(_landed, leaving, done)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _copied(self, prepared: Sequence[Prepared]) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            return _to_device(prepared), self._stream.record_event()

    def _arrived(self, brought: Future[tuple[Tensor, torch.cuda.Event]]) -> Tensor:
        batch, copied = brought.result()
        if batch.is_cuda:
            computing = torch.cuda.current_stream()
            computing.wait_event(copied)
            batch.record_stream(computing)
        return batch


def _to_device(prepared: Sequence[Prepared]) -> Tensor:
    """Return a batch on the device, or on the host for want of room: the model moves what is tried of it."""
    try:
        return stack(prepared, pinned=True).to("cuda", non_blocking=True)
    except Exception as error:
        if not is_exhausted(error):
            raise
        return stack([replace(one, pixels=one.pixels.cpu()) for one in prepared])


def _leaving(outputs: Any) -> Any:
    """Return ``outputs`` with their tensors in page-locked memory, where their copies will have ended."""
    if isinstance(outputs, dict):
        return {name: _leaving_one(value) for name, value in outputs.items()}
    return tuple(_leaving_one(value) for value in outputs)


def _leaving_one(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", non_blocking=True)
    return [_leaving_one(one) for one in value] if isinstance(value, list) else value


def _landed(leaving: Any, done: torch.cuda.Event) -> list[Any]:
    done.synchronize()
    return split(leaving)


def stack(prepared: Sequence[Prepared], pinned: bool = False) -> Tensor:
    """Return the inputs as one batch (N, 3, H, W), in the memory order that they lie in.

    Where one lies on the device, so does the batch; else it is on the host, page-locked if ``pinned``.
    """
    pixels = [one.pixels for one in prepared]
    if any(one.is_cuda for one in pixels):
        pixels, pinned = [_on_device(one) for one in pixels], False
    if pixels[0].stride(0) == 1:  # (H, W, 3) in memory: stacked so, it is channels-last at no cost.
        return _stacked([one.permute(1, 2, 0) for one in pixels], pinned).permute(0, 3, 1, 2)
    return _stacked(pixels, pinned)


def _on_device(pixels: Tensor) -> Tensor:
    """Return pixels on the device, whose memory nobody else gets before this stream is done with it."""
    moved = pixels.to("cuda", non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    return moved


def _stacked(pixels: Sequence[Tensor], pinned: bool) -> Tensor:
    shape = (len(pixels), *pixels[0].shape)
    out = torch.empty(shape, dtype=pixels[0].dtype, pin_memory=True) if pinned else None
    return torch.stack(list(pixels), out=out)


def split(outputs: Any) -> list[Any]:
    """Cut a dict or tuple of tensors (or lists) of first dimension N into N dicts or tuples, on the host."""
    if isinstance(outputs, dict):
        columns = [_host(value) for value in outputs.values()]
        return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    return list(zip(*(_host(value) for value in outputs), strict=True))


def _host(value: Any) -> Sequence[Any]:
    return value.cpu().unbind(0) if isinstance(value, Tensor) else list(value)
