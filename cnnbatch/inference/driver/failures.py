"""What a worker's fault or death means: for the images that it was at, for its node, for the run.

What it decides by is pure and lies in `retries`.
"""

from __future__ import annotations

import time
from typing import Any

from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.driver.active_workers import ActiveWorkers
from cnnbatch.inference.driver.loading import Loading
from cnnbatch.inference.driver.remote import Asked, RemoteWorker
from cnnbatch.inference.driver.retries import Attempts, Probe, Question, Strikes
from cnnbatch.inference.messages import Fault, as_error, failure_of
from cnnbatch.inference.worker_process import take_journal


class Failures:
    """Has tried again what has failed: ``attempts`` are those at shards, ``strikes`` count for the nodes."""

    def __init__(self, workers: ActiveWorkers, loading: Loading, compute: Compute) -> None:
        self._workers, self._loading, self._compute = workers, loading, compute
        self.attempts = Attempts()
        self.strikes = Strikes()

    def give_up_lost_nodes(self) -> None:
        """Try elsewhere what was to be tried on nodes that are gone or left out."""
        alive = {node.id for node in self._workers.capacity.nodes}
        for lost in self.attempts.probed_nodes() - alive:
            self.attempts.give_up_node(lost)

    def take_fault(self, worker: RemoteWorker, kind: Asked, about: Any, fault: Fault) -> None:
        """Take a fault that a worker reported: it is replaced, and its other shards go elsewhere.

        Raises UserError where the fault is the person's, EnvironmentFault where it is to end the run.
        """
        if fault.kind == "user":
            raise as_error(fault)
        if kind == "run" and fault.kind == "predict":
            self.attempts.failed(about, fault.positions, fault.what)
        elif kind == "run":
            self.attempts.requeue(about)
        elif kind == "question":
            self._ask_elsewhere(about)
        elif kind == "measure" and fault.kind == "predict":
            self._loading.give_up_measuring(about)
        self.stop(worker)
        if fault.kind == "environment":
            self._count_strike(worker.node, EnvironmentFault(fault.what, fault.mend))

    def take_death(self, worker: RemoteWorker, words: str, silent: bool = False) -> None:
        """Take the death of a worker: its journal says which images it was at.

        Raises EnvironmentFault where it is to end the run.
        """
        self._workers.lost(worker)
        lost = bool(worker.node) and not self._workers.capacity.is_alive(worker.node)
        found, hung = (None, False) if lost else self._read_journal(worker)  # With its node: nobody's fault.
        if not found and not lost and worker.is_running():
            self._count_strike(
                worker.node, EnvironmentFault("a worker ended between its images", "look at its memory")
            )
        for kind, about in worker.calls.values():
            if kind == "load" and not lost:
                self._loading.forget_remembered()
                what = f"a worker ended while it loaded the model: {words}"
                mend = "look at that machine's memory, and at what its workers wrote"
                self._count_strike(worker.node, EnvironmentFault(what, mend))
            elif kind == "measure" and not lost:
                self._loading.give_up_measuring(about)
            elif kind == "run":
                at = (found or {}).get(about.shard.index, [])
                self.attempts.failed(about, at, "the process ended")
            elif kind == "question":
                self._take_death_at(worker, about, None if found is None else hung or silent)

    def stop(self, worker: RemoteWorker) -> None:
        """End a worker; what it was asked and had not answered is asked of another."""
        for kind, about in worker.calls.values():
            if kind == "run":
                self.attempts.requeue(about)
            elif kind == "question":
                self.attempts.ask(about)
        worker.calls.clear()
        self._workers.end(worker)

    def _take_death_at(self, worker: RemoteWorker, question: Question, hung: bool | None) -> None:
        """Take the death of a worker while it tried something alone; ``hung`` is None where nobody knows."""
        if hung is None:
            self._ask_elsewhere(question)
        elif isinstance(question, Probe):
            self._ask_elsewhere(question)
            what = "a worker ended on random pixels, as it did on every image it was asked"
            mend = "look at that machine's device, memory and logs"
            self._count_strike(worker.node, EnvironmentFault(what, mend))
        else:
            failure = failure_of(hung, self._compute.batch_timeout_s)
            self.attempts.ask(Probe(question, failure, worker.node))

    def _ask_elsewhere(self, question: Question) -> None:
        """Ask again what was not answered: of a probe, the suspect that it was for."""
        self.attempts.ask(question.suspect if isinstance(question, Probe) else question)

    def _count_strike(self, node: str, fault: EnvironmentFault) -> None:
        """Count a fault of the environment: leave the node out, wait, or give up."""
        capacity = self._workers.capacity
        if self.strikes.failed(node, [alive.id for alive in capacity.nodes]):
            host = capacity.host_of(node)
            self._workers.note(f"{host} is left out: it fails what others do ({fault.what})")
            for worker in self._workers:
                if worker.node == node:
                    self.stop(worker)
        pause = self.strikes.pause_s()
        if pause is None:
            raise fault
        time.sleep(pause)
        capacity.look_at_once()

    def _read_journal(self, worker: RemoteWorker) -> tuple[dict[int, list[int]] | None, bool]:
        """Return what an ended worker was at and whether it hung; None where that can't be read."""
        if worker.ready is None:
            return None, False
        read = self._workers.pool.call_on([worker.node], take_journal, worker.ready.journal)
        return read.get(worker.node, (None, False))
