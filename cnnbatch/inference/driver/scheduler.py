"""Which worker gets which shard.

The driver owns every attempt: workers never restart by themselves, since only the driver can tell a fault of
an image from one of a machine (`failures`). On what processes the workers run is the `WorkerPool`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from cnnbatch.errors import UserError
from cnnbatch.inference.driver.active_workers import CLOSE_S, ActiveWorkers
from cnnbatch.inference.driver.capacity import Capacity
from cnnbatch.inference.driver.failures import Failures
from cnnbatch.inference.driver.loading import Loading
from cnnbatch.inference.driver.pool import Call, WorkerEnded, WorkerPool
from cnnbatch.inference.driver.remote import Asked, Heartbeats, RemoteWorker
from cnnbatch.inference.driver.retries import Probe
from cnnbatch.inference.messages import Fault, LoadOrder, Ready, TunedSettings, Withdrawn, Work
from cnnbatch.storage import is_local, parent
from cnnbatch.types import Receipt, Shard

FOLDERS_ASKED = 8  # of the first images, whether every node sees them
LOOK_S = 1.0
"""How long to wait for an answer before looking after nodes and silent workers."""


class Scheduler:
    """Runs shards on workers until none is left; `predict` yields receipts as they come.

    ``note`` is told what a person should know: a node that is left out, an image that was condemned.
    ``shards`` says how many there are at most, where that is known: more workers would find no work.
    """

    def __init__(
        self,
        pool: WorkerPool,
        order: LoadOrder,
        tuned: TunedSettings,
        note: Callable[[str], None],
        shards: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._pool, self._order = pool, order
        capacity = Capacity(pool, order.job.compute, shards, note)
        self._workers = ActiveWorkers(pool, capacity, Heartbeats(pool, order.job.compute), note)
        self._loading = Loading(self._workers, order, tuned)
        self._failures = Failures(self._workers, self._loading, order.job.compute)
        self._attempts = self._failures.attempts
        self._suspects: set[int] = set()
        self._next: Work | None = None
        self._exhausted = False

    def start(self) -> None:
        """Have workers start and load before there is work; `close` ends them if `predict` does not."""
        self._workers.capacity.begin()
        self._start_workers()

    def close(self) -> None:
        """End all workers at once."""
        self._workers.end_all(0)

    def predict(self, work: Iterator[Work | None], suspects: Collection[int]) -> Iterator[Receipt]:
        """Yield the receipt of every shard in ``work``, in the order in which they finish.

        Of the shards numbered ``suspects`` every image is tried alone first. Raises UserError and
        EnvironmentFault.
        """
        first = next((one for one in work if one is not None), None)
        if first is None:
            return
        self._require_shared_paths(first.shard)
        self._suspects = set(suspects)
        self._workers.capacity.begin()
        patience_s = 0.0
        try:
            yield from self._predict(chain([first], work))
            patience_s = CLOSE_S
        finally:
            self._workers.end_all(patience_s)

    def _predict(self, work: Iterator[Work | None]) -> Iterator[Receipt]:
        while True:
            self._pool.require_alive()
            self._start_workers()
            self._send_all(work)
            if self._is_done():
                return
            yield from self._collect()
            for worker, ready in self._loading.waiting():
                self._take_ready(worker, ready)
            self._end_silent()
            ready_count = self._workers.count_ready() + self._loading.count_waiting()
            self._workers.capacity.require_enough(ready_count)

    def _start_workers(self) -> None:
        """Start as many workers as the nodes alive can hold; looked at again while the run lasts."""
        if not self._workers.capacity.look(self._failures.strikes.left_out):
            return
        self._failures.give_up_lost_nodes()
        if self._has_sent_all() and len(self._workers):
            return  # Nothing is waiting for a place: what runs will finish it.
        self._workers.start(self._loading.order, self._attempts.probed_nodes())

    def _has_sent_all(self) -> bool:
        return self._exhausted and self._next is None and not self._attempts

    def _is_done(self) -> bool:
        return self._has_sent_all() and not any(worker.is_busy() for worker in self._workers)

    def _send_all(self, work: Iterator[Work | None]) -> None:
        """Send what there is to send, as long as some worker is free; then take back what waits in vain."""
        while not self._exhausted and (self._next is None or self._send(self._next)):
            self._next, self._exhausted, waits_for_listing = _next(work)
            if waits_for_listing:
                break
        self._send_again()
        self._take_back()

    def _send(self, work: Work) -> bool:
        """Send ``work`` to the free worker that has least to do; say whether it is taken care of."""
        if work.shard.index in self._suspects:
            self._suspects.remove(work.shard.index)
            self._attempts.failed(work, range(len(work.shard.refs)), "an earlier run ended at it")
            return True
        free = [worker for worker in self._workers if worker.is_free()]
        if not free:
            return False
        min(free, key=lambda one: len(one.calls)).ask("run", work, "run", work)
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

    def _take_back(self) -> None:
        """For each worker that has nothing to do, have a busy one give back a shard that it has not begun."""
        idle = sum(worker.ready is not None and not worker.calls for worker in self._workers)
        asked = sum(worker.is_giving_back() for worker in self._workers)
        waiting = [
            (index, worker) for worker in self._workers if (index := worker.waiting_shard()) is not None
        ]
        for index, worker in sorted(
            waiting, key=itemgetter(0)
        ):  # The first are the largest, at a plan's end.
            if asked < idle and worker.gives_back != index:
                worker.gives_back = index
                self._pool.tell(worker.handle, "withdraw", index)
                asked += 1

    def _collect(self) -> Iterator[Receipt]:
        """Take the answers that have come; wait for the first at most a second."""
        asked = {call: worker for worker in self._workers for call in worker.calls}
        if not asked:
            time.sleep(0.2)
            return
        for call in self._pool.wait(asked, LOOK_S):
            worker = asked[call]
            if worker in self._workers and call in worker.calls:
                yield from self._take(worker, call)

    def _take(self, worker: RemoteWorker, call: Call) -> Iterator[Receipt]:
        try:
            answer = self._pool.answer(call)
        except WorkerEnded as death:
            self._failures.take_death(worker, str(death))
            return
        kind, about = worker.calls.pop(call)
        if kind == "run" and about.shard.index == worker.gives_back:
            worker.gives_back = None
        if isinstance(answer, Fault):
            self._failures.take_fault(worker, kind, about, answer)
        elif isinstance(answer, Withdrawn):
            self._attempts.requeue(about)
        elif isinstance(answer, Receipt):
            self._failures.strikes.succeeded(worker.node)
            yield answer
        else:
            self._take_answer(worker, kind, about, answer)

    def _take_answer(self, worker: RemoteWorker, kind: Asked, about: Any, answer: Any) -> None:
        if kind in ("load", "measure"):
            self._take_ready(worker, answer)
        elif isinstance(about, Probe):
            self._attempts.answered(about.suspect, about.failure)
        else:
            self._attempts.answered(about, answer)

    def _take_ready(self, worker: RemoteWorker, ready: Ready) -> None:
        """Take a worker that has loaded or measured; the first of a node shows how many it has memory for."""
        if not self._loading.take(worker, ready):
            return
        if not worker.node:
            try:
                worker.node = self._pool.node_of(worker.handle)
            except WorkerEnded as death:
                self._failures.take_death(worker, str(death))
                return
        if all(other is worker or not other.ready for other in self._workers if other.node == worker.node):
            for other in self._workers.bound_by_memory(worker, ready):
                self._failures.stop(other)

    def _end_silent(self) -> None:
        """End the workers that are heard of no more; one that can't be ended is left alone."""
        for worker in self._workers.silent():
            self._workers.note(
                f"a worker has been silent for {worker.silent_s:.0f} s: its images go to another one"
            )
            self._pool.kill(worker.handle)
            self._failures.take_death(worker, "it was silent", silent=True)

    def _require_shared_paths(self, shard: Shard) -> None:
        """Refuse local paths that some node does not see, before any image is called missing.

        Asked are the output's and the folders of the first images that are there as this node sees it: what
        the job's input names may be a pattern, a list or an earlier output.
        """
        capacity = self._workers.capacity
        folders = dict.fromkeys(parent(ref.uri) for ref in shard.refs if is_local(ref.uri))
        seen = islice((folder for folder in folders if Path(folder).is_dir()), FOLDERS_ASKED)
        local = [path for path in (self._order.output.path("_job"), *seen) if is_local(path)]
        nodes = [node.id for node in capacity.nodes]
        if len(nodes) < 2 or not local:
            return
        for node, missing in self._pool.call_on(nodes, _missing, local).items():
            if missing:
                raise UserError(
                    f"node {capacity.host_of(node)} does not see {missing[0]}: "
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
