"""Workers as processes of this machine: one a core, or one a GPU, which is all that it sees.

The server that they are forked from counts as the node that they are on: where it ends, they end with it and
no image is to blame, and another one is started, a few times. It is kept for the next run of this process,
which then needs not import torch again.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnnbatch.cluster.local.processes import LocalCall, LocalProcess, LocalProcesses, ProcessEnded, wait
from cnnbatch.cluster.nodes import Node, Share, bounds, require_cores
from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.driver.pool import Answer, Value, WorkerEnded
from cnnbatch.inference.worker.malloc import ENVIRONMENT
from cnnbatch.inference.worker_process import WorkerProcess

PRELOAD = "cnnbatch.inference.preload:preload"
MOST_SERVERS = 3
DRIVER_OF_GPUS = "/dev/nvidiactl"
VISIBLE = "CUDA_VISIBLE_DEVICES"
COUNT_S = 60.0


@contextmanager
def local_workers(compute: Compute) -> Iterator[LocalWorkers]:
    """Give workers on this machine, whose processes end with the block; raises as `LocalWorkers`."""
    pool = LocalWorkers(compute)
    try:
        yield pool
    finally:
        pool.close()


def may_have_gpus(compute: Compute) -> bool:
    """Say whether this machine has NVIDIA's driver and the job may use it."""
    return compute.device in ("auto", "cuda") and Path(DRIVER_OF_GPUS).exists()


class LocalWorkers:
    """The `WorkerPool` of this machine, with room for a worker a core, or as many as a job asks for.

    Raises UserError where that is more than a machine can start, EnvironmentFault where no process can be.
    """

    def __init__(self, compute: Compute) -> None:
        cores, (least, _) = os.cpu_count() or 1, bounds(compute)
        require_cores(compute, cores)
        each = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
        self._cpus = max(cores, least * each)
        self._may_have_gpus = may_have_gpus(compute)
        self._servers: list[LocalProcesses] = []
        self._gpus: list[str] | None = None
        self._held: dict[LocalProcess, Mapping[str, float]] = {}
        self._started: list[LocalProcess] = []
        self._server()

    def nodes(self) -> list[Node]:
        """Return this machine, named after the server that runs on it now."""
        self.require_alive()
        self._server()
        gpus = len(self._visible_gpus())
        return [Node(self._name(), socket.gethostname(), self._cpus, gpus)]

    def may_grow(self) -> bool:
        """Say that no other machine comes."""
        return False

    def is_alive(self) -> bool:
        """Say whether processes can be started."""
        return len(self._servers) < MOST_SERVERS or self._servers[-1].is_running

    def require_alive(self) -> None:
        """Raise EnvironmentFault where no process can be started any more."""
        if not self.is_alive():
            raise EnvironmentFault(
                f"no worker can be started on this machine: {self._servers[-1].fault}",
                "look at its memory and limits (ulimit -u, ulimit -n); the same command continues",
            )

    def start(self, node: str, share: Share) -> LocalProcess:
        """Start a worker, which sees its GPUs only."""
        held = self._free_gpus(share.gpus)
        environment = {VISIBLE: ",".join(held)} if share.gpus else {}
        process = self.start_process(WorkerProcess, sys.path, environment=environment)
        self._held[process] = held
        return process

    def start_process(
        self, kind: type, *values: Any, environment: Mapping[str, str] | None = None
    ) -> LocalProcess:
        """Start a process that builds ``kind(*values)``, on all GPUs but where ``environment`` says which."""
        process = self._server().start(kind, *values, environment=environment)
        self._started.append(process)
        return process

    def node_of(self, handle: LocalProcess) -> str:
        """Return the name of the server that a worker is of."""
        return self._name()

    def ask(self, handle: LocalProcess, method: str, *values: Any) -> LocalCall:
        """Call a method of a worker; raises UserError where a value can't be sent."""
        return handle.ask(method, *values)

    def tell(self, handle: LocalProcess, method: str, *values: Any) -> None:
        """Call a method of a worker, and forget it."""
        handle.tell(method, *values)

    def wait(self, calls: Iterable[Any], timeout_s: float) -> Sequence[LocalCall]:
        """Return the calls that are answered."""
        return wait(calls, timeout_s, _changed)

    def answer(self, call: Any) -> Any:
        """Return what a call gave."""
        try:
            return call.process.answer(call.number)
        except ProcessEnded as death:
            raise WorkerEnded(str(death)) from None

    def kill(self, handle: LocalProcess) -> None:
        """End a worker's process."""
        handle.kill()
        self._held.pop(handle, None)

    def call_on(
        self, nodes: Sequence[str], function: Callable[[Value], Answer], value: Value
    ) -> Mapping[str, Answer]:
        """Call a function here, which is where all workers are."""
        return {node: function(value) for node in nodes}

    def close(self) -> None:
        """End all workers."""
        global _kept
        for server in self._servers:
            server.end(process for process in self._started if process.server is server)
        *ended, last = self._servers
        if last.is_running and _kept is None:
            _kept = last
        else:
            ended.append(last)
        for server in ended:
            server.close()

    def _server(self) -> LocalProcesses:
        """Return the server, another one where it has ended."""
        global _kept
        if not self._servers and _kept is not None and _kept.is_running:
            self._servers.append(_kept)
            _kept = None
        if not self._servers or (not self._servers[-1].is_running and len(self._servers) < MOST_SERVERS):
            self._servers.append(_new_server())
        return self._servers[-1]

    def _name(self) -> str:
        return f"local-{len(self._servers)}"

    def _visible_gpus(self) -> list[str]:
        """Return the numbers of the GPUs that CUDA sees here; asked for once, in a process of its own."""
        if self._gpus is None:
            self._gpus = []
            if self._may_have_gpus:
                number = self._count_gpus()
                named = [one for one in os.environ.get(VISIBLE, "").split(",") if one]
                self._gpus = named[:number] or [str(one) for one in range(number)]
        return self._gpus

    def _count_gpus(self) -> int:
        counting = self._servers[-1].start(DeviceCount)
        call = counting.ask("count")
        try:
            return int(call.process.answer(call.number)) if wait([call], COUNT_S, _changed) else 0
        except ProcessEnded:
            return 0
        finally:
            counting.server.end([counting])

    def _free_gpus(self, wanted: float) -> Mapping[str, float]:
        """Return the GPUs for a worker, with the part of each: parts of one, or some that nobody has."""
        held = [gpus for process, gpus in self._held.items() if not process.is_gone]
        part = min(wanted, 1.0)
        free = [
            gpu for gpu in self._visible_gpus() if sum(one.get(gpu, 0.0) for one in held) + part <= 1 + 1e-9
        ]
        return dict.fromkeys(free[: max(1, round(wanted))], part) if wanted else {}


_changed = threading.Condition()
_kept: LocalProcesses | None = None


def begin() -> None:
    """Start the server of the run that follows in this process; raises EnvironmentFault where none can be."""
    global _kept
    if _kept is None:
        _kept = _new_server()
        atexit.register(_kept.close)  # It would only look for its driver once it has imported all.


def _new_server() -> LocalProcesses:
    try:
        return LocalProcesses(PRELOAD, ENVIRONMENT, _changed)
    except OSError as error:
        raise EnvironmentFault(
            f"no process can be started on this machine: {error.strerror}",
            "look at its memory and limits (ulimit -u, ulimit -n)",
        ) from None


class DeviceCount:
    """Counts CUDA devices in a process that is then thrown away: a server that did so could not be forked."""

    def count(self) -> int:
        """Return how many there are."""
        import torch

        return torch.cuda.device_count()
