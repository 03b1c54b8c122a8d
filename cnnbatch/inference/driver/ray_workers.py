"""Workers as plain Ray actors, pinned to a node and to GPUs.

Actors never restart by themselves, and nothing is retried: only the driver can tell a fault of an image from
one of a machine. The price is `driver.scheduler`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cnnbatch.cluster import session
from cnnbatch.cluster.nodes import Node, Share
from cnnbatch.config.compute import Compute
from cnnbatch.inference.driver.pool import Answer, Call, Value, WorkerEnded
from cnnbatch.inference.driver.remote import SHARDS_IN_FLIGHT
from cnnbatch.inference.worker.malloc import ENVIRONMENT
from cnnbatch.inference.worker_process import WorkerProcess

ANSWER_S = 60.0


@contextmanager
def ray_workers(compute: Compute, note: Callable[[str], object] = lambda _: None) -> Iterator[RayWorkers]:
    """Give the workers of the Ray that is there, or of one that is started; ``note`` is told which.

    Raises as `session.connect`, and EnvironmentFault for what Ray itself raises in the block.
    """
    session.connect(compute, note, ENVIRONMENT)
    with session.faults():
        yield RayWorkers()


class RayWorkers:
    """The `WorkerPool` of the Ray that this process is connected to."""

    def __init__(self) -> None:
        self._class = ray.remote(WorkerProcess)
        # Ray has processes up before there are actors; for one with variables of its own it starts another.
        has_variables = ENVIRONMENT.items() <= session.environment().items()
        self._runtime_env = None if has_variables else {"env_vars": ENVIRONMENT}

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        return session.nodes()

    def may_grow(self) -> bool:
        """Say whether another one started this Ray, and may add to it."""
        return not session.is_own()

    def is_alive(self) -> bool:
        """Say whether Ray can be asked anything."""
        return session.is_alive()

    def require_alive(self) -> None:
        """Raise EnvironmentFault where Ray has broken."""
        session.require_alive()

    def start(self, node: str, share: Share) -> Any:
        """Start an actor on a node, where Ray likes if it is ``""``."""
        return self._class.options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=SHARDS_IN_FLIGHT + 2,  # To close, and for heartbeats.
            runtime_env=self._runtime_env,
            scheduling_strategy=_at(node) if node else "SPREAD",
        ).remote(sys.path)

    def node_of(self, handle: Any) -> str:
        """Return the id of the node that an actor is on."""
        try:
            return str(ray.get(handle.__ray_call__.remote(_this_node), timeout=ANSWER_S))
        except (RayActorError, GetTimeoutError) as death:
            raise WorkerEnded(session.first_sentence(death)) from None

    def ask(self, handle: Any, method: str, *values: Any) -> Call:
        """Call a method of an actor."""
        call: Call = getattr(handle, method).remote(*values)
        return call

    def tell(self, handle: Any, method: str, *values: Any) -> None:
        """Call a method of an actor, and forget it."""
        self.ask(handle, method, *values)

    def wait(self, calls: Iterable[Call], timeout_s: float) -> Sequence[Call]:
        """Return the calls that are answered."""
        asked, answered = [*calls], list[Call]()
        if timeout_s:
            ray.wait(asked, num_returns=1, timeout=timeout_s, fetch_local=False)
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=0, fetch_local=False)
        return answered

    def answer(self, call: Any) -> Any:
        """Return what a call gave."""
        try:
            return ray.get(call, timeout=ANSWER_S)
        except (RayActorError, ActorUnschedulableError) as death:
            raise WorkerEnded(session.first_sentence(death)) from None

    def kill(self, handle: Any) -> None:
        """End an actor's process."""
        ray.kill(handle)

    def call_on(
        self, nodes: Sequence[str], function: Callable[[Value], Answer], value: Value
    ) -> Mapping[str, Answer]:
        """Call a function on each node at once."""
        task = ray.remote(function)
        calls = {
            node: task.options(num_cpus=0, max_retries=0, scheduling_strategy=_at(node)).remote(value)
            for node in nodes
        }
        found: dict[str, Answer] = {}
        for node, call in calls.items():
            try:
                found[node] = ray.get(call, timeout=ANSWER_S)
            except RayError:
                continue
        return found


def _at(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _this_node(_: object) -> str:
    return str(ray.get_runtime_context().get_node_id())
