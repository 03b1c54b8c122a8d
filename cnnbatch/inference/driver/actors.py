"""One worker as the driver sees it: what it was asked, and whether it is heard of.

A worker that is stopped, or stuck in the kernel on a device that is gone, can't say so: its own watchdog is
stopped with it. So the driver asks each for a heartbeat, and counts the time without one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from cnnbatch.config.compute import Compute
from cnnbatch.inference.messages import Ready

SHARDS_IN_FLIGHT = 2
BEAT_S = 1.0
LEAST_SILENCE_S = 5.0
SHARE_OF_BATCH = 0.8
"""Of the time that a batch may take: what is left of it is for giving the shard to another worker."""
LONGEST_TURN_S = 2.0

Call = Literal["load", "measure", "run", "question"]


@dataclass(slots=True, eq=False)
class Actor:
    """One worker process as the driver sees it: where it is and what it was asked."""

    handle: Any
    node: str
    calls: dict[Any, tuple[Call, Any]] = field(default_factory=dict)
    ready: Ready | None = None
    beat: Any = None
    has_started: bool = False
    silent_s: float = 0.0

    def is_measuring(self) -> bool:
        """Say whether it looks for the fastest way through the network."""
        return any(kind == "measure" for kind, _ in self.calls.values())

    def is_free(self) -> bool:
        """Say whether another shard may be sent."""
        asked = list(self.calls.values())
        return (
            self.ready is not None
            and len(asked) < SHARDS_IN_FLIGHT
            and all(kind == "run" for kind, _ in asked)
        )

    def ask(self, kind: Call, about: Any, method: str, *values: Any) -> None:
        """Call a method; the answer is `Pool`'s to take."""
        self.calls[getattr(self.handle, method).remote(*values)] = (kind, about)

    def patience_s(self, compute: Compute) -> float:
        """Return how long it may be silent: while it loads, libraries may hold Python's lock for long."""
        if any(kind in ("load", "measure") for kind, _ in self.calls.values()):
            return max(compute.start_timeout_s, compute.batch_timeout_s)
        return max(LEAST_SILENCE_S, SHARE_OF_BATCH * compute.batch_timeout_s)


class Heartbeats:
    """Asks workers for their heartbeats, and tells which have been silent for too long."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._looked = self._asked = time.monotonic()

    def silent(self, actors: Sequence[Actor]) -> list[Actor]:
        """Return the actors that have been silent for too long; to be called again and again.

        What counts is the time in which this process looks: it may be stopped, too. An actor that has not
        started yet is not silent.
        """
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, LONGEST_TURN_S), now
        if asked := {actor.beat: actor for actor in actors if actor.beat is not None}:
            answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=0, fetch_local=False)
            for beat in answered:
                asked[beat].beat, asked[beat].silent_s, asked[beat].has_started = None, 0.0, True
        if now - self._asked >= BEAT_S:
            self._asked = now
            for actor in actors:
                actor.beat = actor.handle.beat.remote() if actor.beat is None else actor.beat
        for actor in actors:
            actor.silent_s += passed if actor.beat is not None and actor.has_started else 0.0
        return [actor for actor in actors if actor.silent_s > actor.patience_s(self._compute)]
