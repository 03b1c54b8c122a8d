"""Clusters of Ray's own for tests: several nodes on this machine, with pretended GPUs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cnnbatch.cluster import private_ray, session


@contextmanager
def cluster_of(head: dict[str, Any], *others: dict[str, Any]) -> Iterator[Cluster]:
    """Start a cluster and connect to it, whatever Ray an earlier test of this process has left up.

    It has no processes but those that workers need, and starts these when they are asked for.
    """
    session.close()
    ray.shutdown()
    with private_ray.starting({}):
        yield from _cluster_of({"_system_config": {"prestart_worker_first_driver": False}, **head}, others)


def _cluster_of(head: dict[str, Any], others: Sequence[dict[str, Any]]) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
    try:
        for node in others:
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        session.close()
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
