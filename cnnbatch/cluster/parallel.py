"""Applies a function to many values, results in order: here, in local processes, or as a Ray cluster's tasks.

For work that starts from files and needs no device; actors with models are `cnnbatch.inference.driver`'s.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from cnnbatch.cluster.address import cluster_address
from cnnbatch.cluster.process_map import AHEAD, ProcessMap
from cnnbatch.types import here

if TYPE_CHECKING:
    from cnnbatch.config.compute import Compute
    from cnnbatch.types import Map, R, T

MANY_IMAGES = 50_000
"""Images from which on it is worth the start of workers."""

LOOK_S = 1.0
"""How long to wait for a result before looking whether Ray is still there."""


def chosen_map(images: int, workers: Literal["auto"] | int, compute: Compute | None = None) -> Map:
    """Return what applies a function to many parts: this process for few images, else workers.

    They are tasks of the Ray cluster where there is one, else processes of this machine.
    """
    number = workers
    if number == "auto":
        number = (os.cpu_count() or 1) if images >= MANY_IMAGES else 1
    if number == 1:
        return here
    return ProcessMap(number) if cluster_address() is None else on_ray(compute, number)


def on_ray(compute: Compute | None, workers: int) -> Map:
    """Return a map over ``workers`` tasks of one CPU each, at a time.

    It joins the cluster once it is called. A task whose node is lost runs again. What
    a task raises, the map raises.
    """

    def over(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
        import ray

        from cnnbatch.cluster import session
        from cnnbatch.config.compute import Compute

        session.connect(compute or Compute())
        task: Any = ray.remote(num_cpus=1)(_call)
        shared, stream = ray.put(function), iter(values)
        order: deque[Any] = deque()
        running: set[Any] = set()
        while True:
            session.require_alive()
            for value in islice(stream, min(workers - len(running), AHEAD * workers - len(order))):
                order.append(task.remote(shared, value))
                running.add(order[-1])
            if not order:
                return
            if running:
                running = set(ray.wait([*running], timeout=LOOK_S, fetch_local=False)[1])
            while order and order[0] not in running:
                yield _result(order.popleft())

    return over


def _call(function: Callable[[T], R], value: T) -> R:
    return function(value)


def _result(reference: Any) -> Any:
    """Return what a task gave; its own error comes as it was raised, without Ray's around it."""
    import ray

    from cnnbatch.cluster import session

    try:
        with session.faults(but=ray.exceptions.RayTaskError):
            return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
