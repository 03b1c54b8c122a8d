"""The workers of a run: as many as the nodes hold, started, watched and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from cnnbatch.humanize import counted
from cnnbatch.inference.driver.capacity import Capacity
from cnnbatch.inference.driver.pool import WorkerPool
from cnnbatch.inference.driver.remote import Heartbeats, RemoteWorker
from cnnbatch.inference.messages import LoadOrder, Ready

CLOSE_S = 5.0


class ActiveWorkers:
    """The workers that there are; iterating gives those of this moment. ``note`` is told what to say."""

    def __init__(
        self, pool: WorkerPool, capacity: Capacity, heartbeats: Heartbeats, note: Callable[[str], None]
    ) -> None:
        self.pool, self.capacity, self.note = pool, capacity, note
        self._heartbeats = heartbeats
        self._workers: list[RemoteWorker] = []

    def __iter__(self) -> Iterator[RemoteWorker]:
        return iter([*self._workers])

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: object) -> bool:
        return worker in self._workers

    def start(self, order: LoadOrder, first: Collection[str]) -> None:
        """Start as many as the nodes have room for and have them load; nodes in ``first`` get one anyway."""
        held = [worker.node for worker in self._workers]
        for node in self.capacity.wanted(held, first):
            worker = RemoteWorker(self.pool, self.pool.start(node, self.capacity.share), node)
            worker.ask("load", None, "load", order)
            self._workers.append(worker)

    def lost(self, worker: RemoteWorker) -> None:
        """Take note that a worker's process is gone."""
        self._workers.remove(worker)
        self.capacity.look_at_once()

    def end(self, worker: RemoteWorker) -> None:
        """End one worker, after what it was asked was taken back."""
        self.lost(worker)
        self._close([worker], CLOSE_S)

    def end_all(self, timeout_s: float = CLOSE_S) -> None:
        """End all of them, each after its shards if it takes no longer than ``timeout_s``."""
        workers, self._workers = self._workers, []
        if self.pool.is_alive():  # Of a pool that broke nothing is asked.
            self._close(workers, timeout_s)

    def silent(self) -> Iterator[RemoteWorker]:
        """Yield the workers that are heard of no more, as long as they are among these."""
        for worker in self._heartbeats.silent(self._workers):
            if worker in self._workers:
                yield worker

    def count_ready(self) -> int:
        """Return how many have loaded their model."""
        return sum(worker.ready is not None or worker.is_measuring() for worker in self._workers)

    def bound_by_memory(self, first: RemoteWorker, ready: Ready) -> list[RemoteWorker]:
        """Return the workers of a node for which its memory does not suffice, by what its first one took."""
        has_one_gpu = ready.settings["device"] == "mps"  # The machine's own, which is not counted.
        fits = 1 if has_one_gpu else 1 + max(0, ready.left_bytes // max(1, ready.rss_bytes))
        if not self.capacity.bound(first.node, fits):
            return []
        what = "one GPU" if has_one_gpu else "memory"
        self.note(f"{ready.host}: {what} for {counted(fits, 'worker')} of {ready.rss_bytes / 2**30:.1f} GB")
        others = [worker for worker in self._workers if worker.node == first.node and worker is not first]
        return others[fits - 1 :]

    def _close(self, workers: Collection[RemoteWorker], timeout_s: float) -> None:
        """Have workers remove their journals, and end them."""
        closing = {self.pool.ask(worker.handle, "close") for worker in workers if worker.ready}
        until = time.monotonic() + timeout_s
        while closing and (left_s := until - time.monotonic()) > 0:
            closing.difference_update(self.pool.wait(closing, left_s))
        for worker in workers:
            self.pool.kill(worker.handle)
