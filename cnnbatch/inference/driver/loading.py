"""How workers get from a loaded model to work: one measures how to run it, the others do what it found."""

from __future__ import annotations

from dataclasses import replace

from cnnbatch.inference.driver.active_workers import ActiveWorkers
from cnnbatch.inference.driver.remote import RemoteWorker
from cnnbatch.inference.messages import LoadOrder, Ready, TunedSettings


class Loading:
    """The workers that are not at work yet; ``order`` is what the next one loads by."""

    def __init__(self, workers: ActiveWorkers, order: LoadOrder, tuned: TunedSettings) -> None:
        self.order = order
        self._workers, self._tuned = workers, tuned
        self._measuring: dict[str, RemoteWorker] = {}
        self._waiting: list[tuple[RemoteWorker, Ready]] = []
        self._unmeasurable: set[str] = set()

    def count_waiting(self) -> int:
        """Return how many wait for what another one measures."""
        return len(self._waiting)

    def forget_remembered(self) -> None:
        """Have no other worker load as an earlier job has found: that may be what ended one."""
        self.order = replace(self.order, remembered=())

    def give_up_measuring(self, kind: str) -> None:
        """Have no other worker measure on a kind of device: the model failed at it."""
        self._unmeasurable.add(kind)

    def take(self, worker: RemoteWorker, ready: Ready) -> bool:
        """Take a worker that has loaded or measured; say whether it is ready for work.

        Else it measures, waits for another one that does, or loads again by what was found. Raises
        UserError and EnvironmentFault where what it loaded does not suit the output.
        """
        if ready.open and self._measures_or_waits(worker, ready):
            return False
        kept = self._tuned.keep(ready)
        self.order = replace(self.order, kept=kept)
        known = kept.get(ready.key)
        if known is None or (ready.open and not ready.settings.items() <= known.items()):
            worker.ask("load", None, "load", self.order)
            return False
        worker.ready = ready
        return True

    def waiting(self) -> list[tuple[RemoteWorker, Ready]]:
        """Return the workers that wait, to be taken again: what they wait for may be there, or be gone."""
        waiting, self._waiting = self._waiting, []
        return [(worker, ready) for worker, ready in waiting if worker in self._workers]

    def _measures_or_waits(self, worker: RemoteWorker, ready: Ready) -> bool:
        """Have the first worker of a kind of device measure how to run; the others wait for what it finds."""
        kind = ready.settings["device"]
        measuring = self._measuring.get(kind)
        if measuring is not None and measuring in self._workers and measuring.is_measuring():
            self._waiting.append((worker, ready))
            return True
        sample = None if kind in self._unmeasurable else self._tuned.sample(ready, len(self._workers))
        if sample is None:
            return False
        self._measuring[kind] = worker
        worker.ask("measure", kind, "measure", sample)
        return True
