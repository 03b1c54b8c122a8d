"""How many workers each node of a cluster can hold: pure arithmetic on what Ray reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnbatch.config.compute import Compute, Workers
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import counted

WORKERS_A_CORE = 16


@dataclass(frozen=True, slots=True)
class Node:
    """One node that is alive: its Ray id, its host's name, its CPUs and GPUs as Ray counts them."""

    id: str
    host: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker asks of a node."""

    cpus: int
    gpus: float

    def fits(self, node: Node) -> int:
        """Return how many workers ``node`` holds."""
        by_cpu = int(node.cpus // self.cpus)
        return min(by_cpu, int(node.gpus / self.gpus + 1e-9)) if self.gpus else by_cpu


def alive_nodes(reported: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the nodes that are alive, from what ``ray.nodes()`` reports."""
    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in reported
        if node["Alive"]
    ]


def share(compute: Compute, nodes: Sequence[Node]) -> Share:
    """Return what one worker asks for: a GPU where the nodes have some and the job wants them."""
    gpus = compute.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if compute.device in ("auto", "cuda") and any(node.gpus for node in nodes) else 0.0
    cpus = 1 if compute.cpus_per_worker == "auto" else compute.cpus_per_worker
    return Share(cpus, gpus)


def bounds(compute: Compute) -> tuple[int, int | None]:
    """Return the least number of workers to start with and the most; None: as many as fit."""
    if isinstance(compute.workers, Workers):
        return compute.workers.min, compute.workers.max
    if compute.workers == "auto":
        return 1, None
    return compute.workers, compute.workers


def require_cores(compute: Compute, cores: int) -> None:
    """Refuse more workers than a machine without a cluster can start, let alone hold."""
    least, _ = bounds(compute)
    if least > WORKERS_A_CORE * cores:
        raise UserError(
            f"compute.workers: expected at most {WORKERS_A_CORE * cores} on this machine's {cores} cores, "
            f"got {least:,}\n  what to do: leave it at auto, or name a cluster by RAY_ADDRESS"
        )


def require_room(compute: Compute, nodes: Sequence[Node], wanted: Share) -> None:
    """Refuse GPUs that no node has, which Ray would wait for in silence."""
    if compute.gpus_per_worker != "auto" and wanted.gpus and not any(node.gpus for node in nodes):
        raise UserError(
            f"compute.gpus_per_worker: expected nodes with {wanted.gpus:g} GPUs each, got {describe(nodes)}\n"
            "  what to do: leave it at auto, or start Ray on the machines with GPUs"
        )


def lacking(compute: Compute, nodes: Sequence[Node], wanted: Share) -> EnvironmentFault | None:
    """Return the fault that there is no room for the least number of workers, or None."""
    least, _ = bounds(compute)
    room = sum(wanted.fits(node) for node in nodes)
    return None if room >= least else _lack(least, wanted, f"there is room for {room}", nodes)


def too_few(
    compute: Compute, nodes: Sequence[Node], wanted: Share, least: int, ready: int
) -> EnvironmentFault:
    """Return the fault that fewer workers than ``least`` were ready in time."""
    when = f"got {ready} within compute.start_timeout_s = {compute.start_timeout_s:g} s"
    return _lack(least, wanted, when, nodes)


def _lack(least: int, wanted: Share, got: str, nodes: Sequence[Node]) -> EnvironmentFault:
    each = f"{wanted.cpus} CPUs, {wanted.gpus:g} GPUs"
    return EnvironmentFault(
        f"expected at least {counted(least, 'worker')} with {each} each, {got}; there is: {describe(nodes)}",
        "ask for fewer (compute.workers), for less each (compute.cpus_per_worker, "
        "compute.gpus_per_worker), or start more nodes",
    )


def describe(nodes: Sequence[Node]) -> str:
    """Return what is there, in words."""
    there = [f"{node.host} ({node.cpus:g} CPUs, {node.gpus:g} GPUs)" for node in nodes]
    return ", ".join(there) or "no node"


def placements(nodes: Sequence[Node], held: Mapping[str, int], room: Mapping[str, int]) -> list[str]:
    """Return the node ids for the workers to be added, the emptiest node first in each round.

    ``held`` counts the workers that a node has, ``room`` those that it can hold.
    """
    free = {node.id: room[node.id] - held.get(node.id, 0) for node in nodes}
    order: list[str] = []
    while any(count > 0 for count in free.values()):
        for node in nodes:
            if free[node.id] > 0:
                free[node.id] -= 1
                order.append(node.id)
    return order
