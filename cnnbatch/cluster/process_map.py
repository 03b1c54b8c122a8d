"""Applies a function to many values in processes of this machine, results in order.

Each process is a fresh interpreter, and functions travel by value: multiprocessing's own processes would
import the caller's `__main__` again, or copy what its threads hold. A process ends with its pipe, so that
none outlives this one, however it ends.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle

from cnnbatch.errors import EnvironmentFault
from cnnbatch.types import R, T

AHEAD = 4
"""Results that may wait for an earlier one, for each process."""

GIVEN = 2
"""Values that a process holds at a time, so that it finds the next one as soon as it is done with one."""

LOOK_S = 2.0
"""How long a process waits for a value before it looks whether its parent is still there."""

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from cnnbatch.cluster.process_map import serve
serve(int(sys.argv[2]), int(sys.argv[3]))
"""


class ProcessMap:
    """A `Map` over at most ``workers`` processes, one a core.

    They start with the first values, stay for the next call, and end with this object. What the function
    raises, the map raises; a process that ends by itself is an EnvironmentFault.
    """

    def __init__(self, workers: int) -> None:
        self._workers = min(workers, os.cpu_count() or 1)
        self._idle: list[_Process] = []
        weakref.finalize(self, _end, self._idle)

    def __call__(self, function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        """Yield ``function(value)`` for each value, in order."""
        processes = [*self._idle]
        self._idle.clear()
        try:
            yield from self._over(processes, function, iter(values))
        except BaseException:
            _end(processes)
            raise
        self._idle += processes

    def _over(
        self, processes: list[_Process], function: Callable[[T], R], stream: Iterator[T]
    ) -> Iterator[R]:
        packed = cloudpickle.dumps(function)
        order: deque[_Value] = deque()
        while True:
            for value in islice(stream, self._room(processes, len(order))):
                order.append(self._freest(processes).give(packed, value))
            if not order:
                return
            for connection in wait([one.connection for one in processes if one.given]):
                next(one for one in processes if one.connection is connection).take()
            while order and order[0].answer is not None:
                yield order.popleft().result()

    def _room(self, processes: Sequence[_Process], begun: int) -> int:
        """Return how many values may be handed out now."""
        given = sum(len(one.given) for one in processes)
        return min(GIVEN * self._workers - given, AHEAD * self._workers - begun)

    def _freest(self, processes: list[_Process]) -> _Process:
        """Return the process that has least to do; a new one where all have something, and it may be had."""
        freest = min(processes, key=lambda one: len(one.given), default=None)
        if freest is not None and (not freest.given or len(processes) == self._workers):
            return freest
        processes.append(_Process())
        return processes[-1]


class _Value:
    """A value that was given to a process, and what came back: a result, or an error and its traceback."""

    answer: tuple[Any, Exception | None, str] | None = None

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        assert self.answer is not None
        found, error, told = self.answer
        if error is not None:
            raise error from RuntimeError(f"in a worker process:\n{told}")
        return found


class _Process:
    """One process, and the values that it has not answered, the oldest first."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.given: deque[_Value] = deque()
        self._packed = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # As long as the process.
        path = json.dumps([str(entry) for entry in sys.path])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, path, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is this process's to handle.
                env={"OMP_NUM_THREADS": "1", **os.environ},  # It has one core.
            )
        except OSError as error:
            ours.close()
            self._errors.close()
            raise EnvironmentFault(
                f"a worker process could not be started: {error.strerror}", _MEND
            ) from None
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())

    def give(self, packed: bytes, value: Any) -> _Value:
        """Hand over a value, and the function where the process has another one."""
        message = cloudpickle.dumps((None if packed is self._packed else packed, value))
        self._packed = packed
        try:
            self.connection.send_bytes(message)
        except OSError:
            raise self._fault() from None
        self.given.append(_Value())
        return self.given[-1]

    def take(self) -> None:
        """Take the answer to the oldest value; raises EnvironmentFault where the process has ended."""
        try:
            answer = self.connection.recv_bytes()
        except (EOFError, OSError):
            raise self._fault() from None
        self.given.popleft().answer = pickle.loads(answer)  # Our own process wrote it.

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _fault(self) -> EnvironmentFault:
        self._process.kill()  # Where only its pipe broke.
        status = self._process.wait()
        how = f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
        return EnvironmentFault(f"a worker process is gone ({how})" + (f": {said}" if said else ""), _MEND)


_MEND = (
    "see that this machine has memory to spare (its kernel ends processes where it hasn't), or take fewer "
    "workers; then give the same command again"
)


def _end(processes: list[_Process]) -> None:
    for process in processes:
        process.end()
    processes.clear()


def serve(descriptor: int, parent: int) -> None:
    """Be such a process: answer what comes until the pipe or the process ``parent`` ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, parent, waiting), daemon=True).start()
    function: Any = None
    while True:
        try:
            packed, value = pickle.loads(waiting.get())
            function = function if packed is None else pickle.loads(packed)
            answer = cloudpickle.dumps((function(value), None, ""))
        except Exception as error:
            answer = _packed(error)
        with suppress(OSError):  # The parent is gone, which the other thread sees.
            connection.send_bytes(answer)


def _receive(connection: Connection, parent: int, waiting: queue.SimpleQueue[bytes]) -> None:
    """Pass on what comes, while the main thread works; end the process where nothing will come any more."""
    with suppress(EOFError, OSError):
        while os.getppid() == parent:
            if connection.poll(LOOK_S):
                waiting.put(connection.recv_bytes())
    os._exit(0)


def _packed(error: Exception) -> bytes:
    """Return an answer that raises this error; what can't travel is told in words."""
    told = "".join(traceback.format_exception(error))
    with suppress(Exception):
        answer = cloudpickle.dumps((None, error, told))
        pickle.loads(answer)
        return bytes(answer)
    return pickle.dumps((None, RuntimeError(told), told))
