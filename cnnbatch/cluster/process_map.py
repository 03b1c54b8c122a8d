"""Applies a function to many values in processes of this machine, results in order.

Functions travel by value, and nothing of the caller's `__main__` is run again; see `cluster.local`.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

from cnnbatch.cluster.local.processes import LocalCall, LocalProcess, LocalProcesses, ProcessEnded, wait
from cnnbatch.errors import EnvironmentFault
from cnnbatch.types import R, T

AHEAD = 4
"""Results that may wait for an earlier one, for each process."""

GIVEN = 2
"""Values that a process holds at a time, so that it finds the next one as soon as it is done with one."""

LOOK_S = 60.0
NOTHING = "os:getpid"
"""What is imported before processes are forked: what a function needs comes with it."""
_MEND = (
    "see that this machine has memory to spare (its kernel ends processes where it hasn't), or take fewer "
    "workers; then give the same command again"
)


class ProcessMap:
    """A `Map` over at most ``workers`` processes, one a core.

    They start with the first values, stay for the next call, and end with this object. What the function
    raises, the map raises; a process that ends by itself is an EnvironmentFault.
    """

    def __init__(self, workers: int) -> None:
        self._workers = min(workers, os.cpu_count() or 1)
        self._idle: _Group | None = None

    def __call__(self, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        """Yield ``function(value)`` for each value, in order."""
        group, self._idle = self._idle or _Group(self._workers), None
        try:
            yield from group.over(function, iter(values))
        except ProcessEnded as death:
            group.close()
            raise EnvironmentFault(f"a worker process is gone: {death}", _MEND) from None
        except BaseException:
            group.close()
            raise
        self._idle = group


class _Group:
    """Processes that hold one function at a time, and the calls that each has not answered."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._given: dict[LocalProcess, set[LocalCall]] = {}
        self._server: LocalProcesses | None = None
        self._end = weakref.finalize(self, lambda: None)

    def over(self, function: Callable[[T], R], stream: Iterator[T]) -> Iterator[R]:
        for process in self._given:
            process.tell("hold", function)
        order: deque[LocalCall] = deque()
        while True:
            for value in islice(stream, self._room(len(order))):
                process = self._freest(function)
                order.append(process.ask("call", value))
                self._given[process].add(order[-1])
            if not order:
                return
            self._take()
            while order and order[0] not in self._given[order[0].process]:
                call = order.popleft()
                yield call.process.answer(call.number)

    def close(self) -> None:
        """End all processes."""
        self._end()
        self._given.clear()

    def _take(self) -> None:
        """Wait for an answer; raises ProcessEnded where a process has ended, whichever value is next."""
        assert self._server is not None
        waited = [call for calls in self._given.values() for call in calls]
        for call in wait(waited, LOOK_S, self._server.changed):
            call.process.require_answer(call.number)
            self._given[call.process].remove(call)

    def _room(self, begun: int) -> int:
        """Return how many values may be handed out now."""
        given = sum(map(len, self._given.values()))
        return min(GIVEN * self._workers - given, AHEAD * self._workers - begun)

    def _freest(self, function: Callable[..., Any]) -> LocalProcess:
        """Return the process that has least to do; a new one where all have something, and it may be had."""
        freest = min(self._given, key=lambda one: len(self._given[one]), default=None)
        if freest is not None and (not self._given[freest] or len(self._given) == self._workers):
            return freest
        threads = os.environ.get("OMP_NUM_THREADS", "1")  # A process has one core.
        process = self._started().start(_Function, function, environment={"OMP_NUM_THREADS": threads})
        self._given[process] = set()
        return process

    def _started(self) -> LocalProcesses:
        if self._server is None:
            try:
                self._server = LocalProcesses(NOTHING)
            except OSError as error:
                raise EnvironmentFault(
                    f"a worker process could not be started: {error.strerror}", _MEND
                ) from None
            self._end = weakref.finalize(self, self._server.close)
        return self._server


class _Function:
    """What a process of the map holds."""

    THREADS: ClassVar[int] = 1  # So that values are taken one after the other.

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def hold(self, function: Callable[[Any], Any]) -> None:
        """Hold another function, for the calls that come after."""
        self._function = function

    def call(self, value: Any) -> Any:
        """Return what the function gives."""
        return self._function(value)
