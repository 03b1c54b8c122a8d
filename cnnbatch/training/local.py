"""Trains with one worker in a process of this machine: its death costs the steps since the last checkpoint.

Two workers or more are Ray Train's, in `driver`, since they have to find each other.
"""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from cnnbatch.cluster.local.processes import LocalProcess, ProcessEnded, wait
from cnnbatch.cluster.nodes import bounds
from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.driver.local_workers import local_workers, may_have_gpus
from cnnbatch.inference.driver.pools import chosen_pool
from cnnbatch.training.messages import TrainingMessage, TrainingOrder

LISTEN_S = 1.0


def trains_here(compute: Compute) -> bool:
    """Say whether a job trains with one worker on this machine.

    Raises UserError where it asks for more of them without Ray.
    """
    if chosen_pool(compute) == "ray":
        return False
    most = _most_workers(compute)
    if compute.pool == "local" and most != 1 and compute.workers != "auto":
        raise UserError(
            f"compute.workers: expected 1 with compute.pool=local, got {most}\n"
            "  what to do: two workers or more train on Ray, by compute.pool=ray or auto"
        )
    return compute.pool == "local" or most == 1


def fit(order: TrainingOrder) -> Iterator[TrainingMessage]:
    """Train in one process and yield what it sends; where it dies, another one goes on from the checkpoint.

    Raises UserError, and EnvironmentFault once it has died more than ``train.max_failures`` times.
    """
    failures = 0
    with local_workers(order.job.compute.model_copy(update={"workers": 1})) as pool:
        while True:
            process = pool.start_process(TrainingProcess, sys.path)
            try:
                yield from _messages(process, order, order.job.compute.batch_timeout_s)
                return
            except ProcessEnded as death:
                failures += 1
                if failures > order.job.train.max_failures:
                    raise EnvironmentFault(
                        f"the process that trains was lost: {death}",
                        "look at this machine's memory; the same command goes on from the last checkpoint",
                    ) from None


def _messages(process: LocalProcess, order: TrainingOrder, timeout_s: float) -> Iterator[TrainingMessage]:
    """Yield the messages of one process until it has trained to the end; raises what it raised.

    A process that is silent for ``timeout_s`` is ended.
    """
    training, taking = process.ask("train", order), process.ask("take")
    while True:
        if not wait([taking], timeout_s, process.server.changed):
            process.kill()
            continue
        messages = process.answer(taking.number)
        yield from messages
        if not messages and process.is_answered(training.number):
            process.answer(training.number)
            return
        taking = process.ask("take")


def _most_workers(compute: Compute) -> int | None:
    """Return how many workers a job may have; None: as many as this machine holds, which are several."""
    _, most = bounds(compute)
    if most is not None:
        return most
    each = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    room = (_count_gpus(compute) if may_have_gpus(compute) else 0) or (os.cpu_count() or 1) // each
    return 1 if room <= 1 else None


def _count_gpus(compute: Compute) -> int:
    with local_workers(compute) as pool:
        return int(sum(node.gpus for node in pool.nodes()))


def threads_of(compute: Compute) -> int:
    """Return how many threads a worker has that trains alone on this machine."""
    return compute.cpus_per_worker if compute.cpus_per_worker != "auto" else os.cpu_count() or 1


class TrainingProcess:
    """The worker: `train` works, and `take` gives what it has sent meanwhile."""

    def __init__(self, import_path: Sequence[str]) -> None:
        sys.path.extend(folder for folder in import_path if folder not in sys.path)
        self._messages = queue.SimpleQueue[TrainingMessage]()

    def train(self, order: TrainingOrder) -> None:
        """Train to the end, from the newest checkpoint on."""
        from cnnbatch.inference.worker import devices
        from cnnbatch.training.distributed import Team
        from cnnbatch.training.worker import work

        device = devices.find_device(order.job.compute.device)
        work(order, Team(), device, threads_of(order.job.compute), self._messages.put)

    def take(self) -> list[Any]:
        """Return the messages since the last time; wait for the first no longer than `LISTEN_S`."""
        found: list[Any] = []
        try:
            found.append(self._messages.get(timeout=LISTEN_S))
            while True:
                found.append(self._messages.get_nowait())
        except queue.Empty:
            return found
