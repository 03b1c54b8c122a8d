"""One worker as the driver sees it: what it was asked, and whether it is heard of.

A worker that is stopped, or stuck in the kernel on a device that is gone, can't say so: its own watchdog is
stopped with it. So the driver asks each for a heartbeat, and counts the time without one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cnnbatch.config.compute import Compute
from cnnbatch.inference.driver.pool import Call, Handle, WorkerPool
from cnnbatch.inference.messages import Ready

SHARDS_IN_FLIGHT = 2
BEAT_S = 1.0
LEAST_SILENCE_S = 5.0
SHARE_OF_BATCH = 0.8
"""Of the time that a batch may take: what is left of it is for giving the shard to another worker."""
LONGEST_TURN_S = 2.0

Asked = Literal["load", "measure", "run", "question"]


@dataclass(slots=True, eq=False)
class RemoteWorker:
    """One worker process as the driver sees it: where it is and what it was asked."""

    pool: WorkerPool
    handle: Handle
    node: str
    calls: dict[Call, tuple[Asked, Any]] = field(default_factory=dict)
    ready: Ready | None = None
    beat: Call | None = None
    has_started: bool = False
    silent_s: float = 0.0
    gives_back: int | None = None
    """The shard that it was asked to give back."""

    def is_measuring(self) -> bool:
        """Say whether it looks for the fastest way through the network."""
        return any(kind == "measure" for kind, _ in self.calls.values())

    def is_running(self) -> bool:
        """Say whether it has a shard in hand."""
        return any(kind == "run" for kind, _ in self.calls.values())

    def is_busy(self) -> bool:
        """Say whether it has anything but its model in hand."""
        return any(kind != "load" for kind, _ in self.calls.values())

    def waiting_shard(self) -> int | None:
        """Return the shard that waits for another one to be finished, if there is one."""
        running = [about.shard.index for kind, about in self.calls.values() if kind == "run"]
        return running[-1] if len(running) == SHARDS_IN_FLIGHT else None

    def is_giving_back(self) -> bool:
        """Say whether the shard that waits was asked for."""
        return self.gives_back is not None and self.gives_back == self.waiting_shard()

    def is_free(self) -> bool:
        """Say whether another shard may be sent."""
        asked = list(self.calls.values())
        return (
            self.ready is not None
            and len(asked) < SHARDS_IN_FLIGHT
            and all(kind == "run" for kind, _ in asked)
        )

    def ask(self, kind: Asked, about: Any, method: str, *values: Any) -> None:
        """Call a method; the answer is the scheduler's to take."""
        self.calls[self.pool.ask(self.handle, method, *values)] = (kind, about)

    def patience_s(self, compute: Compute) -> float:
        """Return how long it may be silent: while it loads, libraries may hold Python's lock for long."""
        if any(kind in ("load", "measure") for kind, _ in self.calls.values()):
            return max(compute.start_timeout_s, compute.batch_timeout_s)
        return max(LEAST_SILENCE_S, SHARE_OF_BATCH * compute.batch_timeout_s)


class Heartbeats:
    """Asks workers for their heartbeats, and says which have been silent for too long."""

    def __init__(self, pool: WorkerPool, compute: Compute) -> None:
        self._pool, self._compute = pool, compute
        self._looked = self._asked = time.monotonic()

    def silent(self, workers: Sequence[RemoteWorker]) -> list[RemoteWorker]:
        """Return the workers that have been silent for too long; to be called again and again.

        What counts is the time in which this process looks: it may be stopped, too. A worker that has not
        started yet is not silent.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_TURN_S), now
        if asked := {worker.beat: worker for worker in workers if worker.beat is not None}:
            for beat in self._pool.wait(asked, 0):
                asked[beat].beat, asked[beat].silent_s, asked[beat].has_started = None, 0.0, True
        if now - self._asked >= BEAT_S:
            self._asked = now
            for worker in workers:
                worker.beat = self._pool.ask(worker.handle, "beat") if worker.beat is None else worker.beat
        for worker in workers:
            worker.silent_s += passed if worker.beat is not None and worker.has_started else 0.0
        return [worker for worker in workers if worker.silent_s > worker.patience_s(self._compute)]
