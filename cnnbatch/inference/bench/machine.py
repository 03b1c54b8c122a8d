"""What of this machine a run uses."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from cnnbatch.cluster import nodes
from cnnbatch.config.compute import Compute


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run uses here: ``devices`` are accelerators (none on a CPU), ``readers`` read side by side."""

    cores: int
    workers: int
    devices: int
    readers: int

    def busy(self, parts: int) -> Machine:
        """Return what of it has work, where there are so many parts: a part is one worker's."""
        workers = max(1, min(self.workers, parts))
        share = workers / self.workers
        devices = math.ceil(self.devices * share)
        return Machine(math.ceil(self.cores * share), workers, devices, math.ceil(self.readers * share))


def machine_for(compute: Compute, device: str) -> Machine:
    """Return what a run of ``compute`` uses of this machine, where the model is on ``device``."""
    import torch

    from cnnbatch.inference.worker.readahead import READ_THREADS

    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count() if device == "cuda" else 0
    here = nodes.Node("", "here", cores, gpus)
    each = nodes.share(compute, [here])
    _, most = nodes.bounds(compute)
    workers = max(1, min(each.fits(here), cores if most is None else most))
    devices = min(gpus, math.ceil(workers * each.gpus)) if device == "cuda" else int(device != "cpu")
    if compute.pool == "inline":
        threads = cores if compute.cpus_per_worker == "auto" else min(cores, compute.cpus_per_worker)
        return Machine(threads, 1, min(devices, 1), READ_THREADS)
    return Machine(min(cores, workers * each.cpus), workers, devices, READ_THREADS * workers)
