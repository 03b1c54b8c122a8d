"""The workers that train together, as one of them sees it: alone, or over torch's process group."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cnnbatch.tasks.recipes.recipe import Rows


@dataclass(frozen=True)
class Team:
    """``world`` workers, of which this is number ``rank``; those of more than one share a process group."""

    rank: int = 0
    world: int = 1

    def wrap(self, module: nn.Module, device: torch.device, narrow: bool = False) -> nn.Module:
        """Return the module with gradients averaged over the team, normalisations too where a GPU can.

        ``narrow``: gradients travel in bfloat16, half of the bytes.
        """
        if self.world == 1:
            return module
        if device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        devices = [device] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(module, devices, gradient_as_bucket_view=True)
        if narrow:
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Keep gradients to oneself while the block lasts."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def share_buffers(self, module: nn.Module) -> None:
        """Have everyone use the first worker's running statistics."""
        if self.world > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums over the team, in place; does not wait for a GPU."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def rows(self, values: Tensor, counts: Tensor) -> Rows:
        """Return the rows of all workers, of which each has as many as ``counts`` (world,) says."""
        ends = [0, *counts.cumsum(0).int().tolist()]
        first, end = ends[self.rank], ends[self.rank + 1]
        every = values.new_zeros(ends[-1], *values.shape[1:])
        every[first:end] = values[: end - first]
        return Rows(self.sum(every), first, end - first)

    def gather(self, values: list[Any]) -> list[Any]:
        """Return the values of all, in the order of their ranks."""
        if self.world == 1:
            return values
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, values)
        return [value for some in found for value in some]
