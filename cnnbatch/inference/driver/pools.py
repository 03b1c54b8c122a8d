"""On what a run predicts: Ray's actors, processes of this machine, or this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from cnnbatch.cluster.address import chosen, cluster_address
from cnnbatch.config.compute import Compute
from cnnbatch.inference.driver.pool import WorkerPool

HANDFUL = 20
"""Images, at most, for which ``compute.pool: auto`` starts no process."""


def runs_inline(compute: Compute, images: int | None) -> bool:
    """Say whether a run of so many images takes this process; None: nobody knows how many there are."""
    if compute.pool == "auto":
        return images is not None and images <= HANDFUL and compute.workers == "auto"
    return compute.pool == "inline"


def chosen_pool(compute: Compute) -> Literal["ray", "local"]:
    """Return where the workers of a run are that does not take this process.

    ``auto`` takes the Ray that this process has joined, that RAY_ADDRESS names, or that runs on this machine.
    Raises as `cluster_address`.
    """
    if compute.pool == "auto":
        return "ray" if _has_joined() or cluster_address() is not None else "local"
    return "ray" if compute.pool == "ray" else "local"


def _has_joined() -> bool:
    """Say whether the person's own program has joined a Ray, and does not ask for this machine alone."""
    if "ray" not in sys.modules or chosen() == "local":
        return False
    from cnnbatch.cluster import session

    return session.is_connected() and not session.is_own()


@contextmanager
def open_pool(compute: Compute, note: Callable[[str], object] = lambda _: None) -> Iterator[WorkerPool]:
    """Give the pool of a run's workers, which ends with the block; ``note`` is told which Ray that is.

    Raises as `ray_workers` and `local_workers`.
    """
    if chosen_pool(compute) == "local":
        from cnnbatch.inference.driver.local_workers import local_workers

        with local_workers(compute) as local:
            yield local
    else:
        from cnnbatch.inference.driver.ray_workers import ray_workers

        with ray_workers(compute, note) as pool:
            yield pool
