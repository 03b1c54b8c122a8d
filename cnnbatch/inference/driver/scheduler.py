"""Which worker gets which shard, and what the death of one means.

The driver owns every attempt: workers never restart by themselves, since only the driver can tell a fault of
an image from one of a machine. What it decides by is pure and lies in `retries`, `capacity` and
`cluster.nodes`; on what processes the workers run is the `WorkerPool`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.driver.capacity import Capacity
from cnnbatch.inference.driver.pool import WorkerEnded, WorkerPool
from cnnbatch.inference.driver.remote import Asked, Heartbeats, RemoteWorker, end
from cnnbatch.inference.driver.retries import Attempts, Probe, Question, Strikes
from cnnbatch.inference.messages import Fault, LoadOrder, Ready, TunedSettings, Work, as_error, failure_of
from cnnbatch.inference.worker_process import take_journal
from cnnbatch.storage import is_local, parent
from cnnbatch.types import Receipt, Shard

FOLDERS_ASKED = 8  # of the first images, whether every node sees them
CLOSE_S = 5.0


class Scheduler:
    """Runs shards on workers until none is left; `predict` yields receipts as they come.

    ``note`` is told what a person should know: a node that is left out, an image that was condemned.
    ``shards`` is how many there are at most, where that is known: more workers would find no work.
    """

    def __init__(
        self,
        pool: WorkerPool,
        order: LoadOrder,
        tuned: TunedSettings,
        note: Callable[[str], None],
        shards: int | None = None,
    ) -> None:
        self._pool, self._order, self._tuned, self._note = pool, order, tuned, note
        self._compute = compute = order.job.compute
        self._capacity = Capacity(pool, compute, shards, note)
        self._workers: list[RemoteWorker] = []
        self._heartbeats = Heartbeats(pool, compute)
        self._attempts = Attempts()
        self._strikes = Strikes()
        self._measuring: dict[str, RemoteWorker] = {}
        self._waiting: list[tuple[RemoteWorker, Ready]] = []
        self._unmeasurable: set[str] = set()

    def predict(self, work: Iterator[Work | None], suspects: Collection[int]) -> Iterator[Receipt]:
        """Yield the receipt of every shard in ``work``, in the order in which they finish.

        Of the shards numbered ``suspects`` every image is tried alone first. Raises UserError and
        EnvironmentFault.
        """
        first = next((one for one in work if one is not None), None)
        if first is None:
            return
        self._require_shared_paths(first.shard)
        work = chain([first], work)
        self._suspects = set(suspects)
        self._capacity.begin()
        next_work: Work | None = None
        exhausted = False
        try:
            while True:
                self._pool.require_alive()
                self._start_workers(enough=exhausted and next_work is None and not self._attempts)
                while not exhausted and (next_work is None or self._send(next_work)):
                    next_work, exhausted, slow = _next(work)
                    if slow:
                        break
                self._send_again()
                if exhausted and next_work is None and not self._attempts and not self._is_busy():
                    return
                yield from self._collect()
                self._look_at_waiting()
                self._end_silent()
                self._capacity.require_enough(self._count_ready())
        finally:
            workers, self._workers = self._workers, []
            if self._pool.is_alive():  # Of a Ray that broke nothing is asked.
                end(self._pool, workers, CLOSE_S)

    def _start_workers(self, enough: bool) -> None:
        """Start as many workers as the nodes alive can hold; looked at again while the run lasts."""
        if not self._capacity.look(self._strikes.left_out):
            return
        probed = self._attempts.probed_nodes()
        for lost in probed - {node.id for node in self._capacity.nodes}:
            self._attempts.give_up_node(lost)
        if enough and self._workers:
            return  # Nothing is waiting for a place: what runs will finish it.
        held = [worker.node for worker in self._workers]
        for node in self._capacity.wanted(held, self._attempts.probed_nodes()):
            worker = RemoteWorker(self._pool, self._pool.start(node, self._capacity.share), node)
            worker.ask("load", None, "load", self._order)
            self._workers.append(worker)

    def _send(self, work: Work) -> bool:
        """Send ``work`` to the free worker that has least to do; say whether it is taken care of."""
        if work.shard.index in self._suspects:
            self._suspects.remove(work.shard.index)
            self._attempts.failed(work, range(len(work.shard.refs)), "an earlier run ended at it")
            return True
        free = [worker for worker in self._workers if worker.is_free()]
        if not free:
            return False
        worker = min(free, key=lambda one: len(one.calls))
        worker.ask("run", work, "run", work)
        return True

    def _send_again(self) -> None:
        """Send what has to be tried alone to workers that do nothing else, and shards to be run again."""
        for worker in self._workers:
            if worker.ready and not worker.calls and (question := self._attempts.next_question(worker.node)):
                if isinstance(question, Probe):
                    worker.ask("question", question, "probe")
                else:
                    worker.ask("question", question, "try_alone", question.shard, question.position)
        while any(worker.is_free() for worker in self._workers) and (work := self._attempts.next_work()):
            self._send(work)

    def _is_busy(self) -> bool:
        return any(kind != "load" for worker in self._workers for kind, _ in worker.calls.values())

    def _count_ready(self) -> int:
        ready = sum(worker.ready is not None or worker.is_measuring() for worker in self._workers)
        return ready + len(self._waiting)

    def _collect(self) -> Iterator[Receipt]:
        """Take the answers that have come; wait for one at most a second."""
        asked = {call: worker for worker in self._workers for call in worker.calls}
        if not asked:
            time.sleep(0.2)
            return
        for call in self._pool.wait(asked, 1.0):
            worker = asked[call]
            if worker not in self._workers:
                continue
            try:
                answer = self._pool.answer(call)
            except WorkerEnded as death:
                self._take_death(worker, str(death))
                continue
            kind, about = worker.calls.pop(call)
            if isinstance(answer, Fault):
                self._take_fault(worker, kind, about, answer)
            elif kind in ("load", "measure"):
                self._take_ready(worker, answer)
            elif kind == "run":
                self._strikes.succeeded(worker.node)
                yield answer
            elif isinstance(about, Probe):
                self._attempts.answered(about.suspect, about.failure)
            else:
                self._attempts.answered(about, answer)

    def _take_ready(self, worker: RemoteWorker, ready: Ready) -> None:
        """Take a worker that has loaded or measured: it measures, waits, loads again, or gets to work."""
        if ready.open and self._measures_or_waits(worker, ready):
            return
        kept = self._tuned.keep(ready)
        self._order = replace(self._order, kept=kept)
        known = kept.get(ready.key)
        if known is None or (ready.open and not ready.settings.items() <= known.items()):
            worker.ask("load", None, "load", self._order)
            return
        worker.ready = ready
        if not worker.node:
            try:
                worker.node = self._pool.node_of(worker.handle)
            except WorkerEnded as death:
                self._take_death(worker, str(death))
                return
        if all(other is worker or not other.ready for other in self._workers if other.node == worker.node):
            self._bound_by_memory(worker, ready)

    def _measures_or_waits(self, worker: RemoteWorker, ready: Ready) -> bool:
        """Have the first worker of a kind of device measure how to run; the others wait for what it finds."""
        kind = ready.settings["device"]
        if (measuring := self._measuring.get(kind)) in self._workers and measuring.is_measuring():
            self._waiting.append((worker, ready))
            return True
        sample = None if kind in self._unmeasurable else self._tuned.sample(ready, len(self._workers))
        if sample is None:
            return False
        self._measuring[kind] = worker
        worker.ask("measure", kind, "measure", sample)
        return True

    def _look_at_waiting(self) -> None:
        """Look again at the workers that wait: what they wait for may be measured, or its worker gone."""
        waiting, self._waiting = self._waiting, []
        for worker, ready in waiting:
            if worker in self._workers:
                self._take_ready(worker, ready)

    def _bound_by_memory(self, first: RemoteWorker, ready: Ready) -> None:
        """Give up the workers of a node for which its memory does not suffice, by what the first one took."""
        has_one_gpu = ready.settings["device"] == "mps"  # The machine's own, which Ray does not count.
        fits = 1 if has_one_gpu else 1 + max(0, ready.left_bytes // max(1, ready.rss_bytes))
        if not self._capacity.bound(first.node, fits):
            return
        loading = [worker for worker in self._workers if worker.node == first.node and worker is not first]
        for worker in loading[fits - 1 :]:
            self._stop(worker)
        what = "one GPU" if has_one_gpu else "memory"
        self._note(f"{ready.host}: {what} for {fits} workers of {ready.rss_bytes / 2**30:.1f} GB")

    def _take_fault(self, worker: RemoteWorker, kind: Asked, about: Any, fault: Fault) -> None:
        """Take a fault that a worker reported: it is replaced, and its other shards go elsewhere."""
        if fault.kind == "user":
            raise as_error(fault)
        if kind == "run" and fault.kind == "predict":
            self._attempts.failed(about, fault.positions, fault.what)
        elif kind == "run":
            self._attempts.requeue(about)
        elif kind == "question":
            self._ask_elsewhere(about)
        elif kind == "measure" and fault.kind == "predict":
            self._unmeasurable.add(about)
        self._stop(worker)
        if fault.kind == "environment":
            self._count_strike(worker.node, EnvironmentFault(fault.what, fault.mend))

    def _count_strike(self, node: str, fault: EnvironmentFault) -> None:
        """Count a fault of the environment: leave the node out, wait, or give up."""
        if self._strikes.failed(node, [alive.id for alive in self._capacity.nodes]):
            host = self._capacity.host_of(node)
            self._note(f"{host} is left out: it fails what others do ({fault.what})")
            for worker in [worker for worker in self._workers if worker.node == node]:
                self._stop(worker)
        pause = self._strikes.pause_s()
        if pause is None:
            raise fault
        time.sleep(pause)
        self._capacity.look_at_once()

    def _end_silent(self) -> None:
        """End the workers that are heard of no more; one that can't be ended is left alone."""
        for worker in self._heartbeats.silent(self._workers):
            if worker not in self._workers:
                continue  # Given up meanwhile, with its node.
            self._note(f"a worker has been silent for {worker.silent_s:.0f} s: its images go to another one")
            self._pool.kill(worker.handle)
            self._take_death(worker, "it was silent", silent=True)

    def _take_death(self, worker: RemoteWorker, words: str, silent: bool = False) -> None:
        """Take the death of a worker: its journal says which images it was at."""
        self._workers.remove(worker)
        self._capacity.look_at_once()
        lost = bool(worker.node) and not self._capacity.is_alive(
            worker.node
        )  # With its node: nobody's fault.
        found, hung = (None, False) if lost else self._read_journal(worker)
        if not found and not lost and worker.is_running():
            self._count_strike(
                worker.node, EnvironmentFault("a worker ended between its images", "look at its memory")
            )
        for kind, about in worker.calls.values():
            if kind == "load" and not lost:
                self._order = replace(self._order, remembered=())  # It may be a remembered way that ends it.
                what = f"a worker ended while it loaded the model: {words}"
                mend = "look at that machine's memory and Ray's logs"
                self._count_strike(worker.node, EnvironmentFault(what, mend))
            elif kind == "measure":
                self._unmeasurable.add(about)
            elif kind == "run":
                at = (found or {}).get(about.shard.index, [])
                self._attempts.failed(about, at, "the process ended")
            elif kind == "question":
                self._take_death_at(worker, about, None if found is None else hung or silent)

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
            self._attempts.ask(Probe(question, failure, worker.node))

    def _ask_elsewhere(self, question: Question) -> None:
        """Ask again what was not answered: of a probe, the suspect that it was for."""
        self._attempts.ask(question.suspect if isinstance(question, Probe) else question)

    def _read_journal(self, worker: RemoteWorker) -> tuple[dict[int, list[int]] | None, bool]:
        """Return what an ended worker was at and whether it hung; None where that can't be read."""
        if worker.ready is None:
            return None, False
        read = self._pool.call_on([worker.node], take_journal, worker.ready.journal)
        return read.get(worker.node, (None, False))

    def _give_back(self, worker: RemoteWorker) -> None:
        for kind, about in worker.calls.values():
            if kind == "run":
                self._attempts.requeue(about)
            elif kind == "question":
                self._attempts.ask(about)

    def _stop(self, worker: RemoteWorker) -> None:
        """End a worker; what it was asked and had not answered is asked of another."""
        self._give_back(worker)
        worker.calls.clear()
        self._workers.remove(worker)
        self._capacity.look_at_once()
        end(self._pool, [worker], CLOSE_S)

    def _require_shared_paths(self, shard: Shard) -> None:
        """Refuse local paths that some node does not see, before any image is called missing.

        Asked are the output's and the folders of the first images that are there as this node sees it: what
        the job's input names may be a pattern, a list or an earlier output.
        """
        folders = dict.fromkeys(parent(ref.uri) for ref in shard.refs if is_local(ref.uri))
        seen = islice((folder for folder in folders if Path(folder).is_dir()), FOLDERS_ASKED)
        local = [path for path in (self._order.output.path("_job"), *seen) if is_local(path)]
        nodes = [node.id for node in self._capacity.nodes]
        if len(nodes) < 2 or not local:
            return
        for node, missing in self._pool.call_on(nodes, _missing, local).items():
            if missing:
                raise UserError(
                    f"node {self._capacity.host_of(node)} does not see {missing[0]}: "
                    "on several nodes a local path must be shared\n"
                    "  what to do: mount it on every node, or use an object store (s3://, gs://, az://)"
                )


def _next(work: Iterator[Work | None]) -> tuple[Work | None, bool, bool]:
    """Return what is next, whether that was all, and whether the listing has to be waited for."""
    try:
        found = next(work)
    except StopIteration:
        return None, True, False
    return found, False, found is None


def _missing(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]
