"""How busy the scheduler keeps 64 workers that sleep as GPUs would compute.

A shard's images cost the same, from half to one and a half of the mean. Beside the shards of a plan, whose
ends are small, stand as many equal ones.

    python -m tests.bench.scheduling
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapreplace
from itertools import count, repeat
from typing import Any

from rich.console import Console

from cnnbatch.cluster.nodes import Node, Share
from cnnbatch.inference.driver.scheduler import Scheduler
from cnnbatch.inference.messages import LoadOrder, Ready, TuningSample, Withdrawn, Work
from cnnbatch.job import MapJob
from cnnbatch.output import plan
from cnnbatch.output.folder import Output
from cnnbatch.output.plan import SmallEnds
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Receipt, Shard

WORKERS, SHARDS = 64, 1000
OWN = 1000  # images in a shard, as a classifier has them
IMAGE_S = 0.4 / OWN  # what a GPU takes for a ResNet-50
SETTINGS = {"device": "cpu:none", "precision": "fp32"}
REF = ImageRef("key", "s3://bucket/key")


class SleepingWorker:
    """A thread that runs the shards it is sent, the first one first: it sleeps for what each costs."""

    def __init__(self, cost_s: Callable[[int], float], answer: Callable[[int, Any], None]) -> None:
        self._cost_s, self._answer = cost_s, answer
        self._queue = deque[tuple[int, int]]()
        self._changed = threading.Condition()
        self._ended = False
        self.busy = list[tuple[float, float]]()
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, call: int, shard: int) -> None:
        """Have a shard run after those sent before."""
        with self._changed:
            self._queue.append((call, shard))
            self._changed.notify()

    def withdraw(self, shard: int) -> None:
        """Give a shard back unless it has begun."""
        with self._changed:
            for one in [one for one in self._queue if one[1] == shard]:
                self._queue.remove(one)
                self._answer(one[0], Withdrawn())

    def end(self) -> None:
        """End the thread after the shard in hand."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ended)
                if self._ended:
                    return
                call, shard = self._queue.popleft()
            began = time.perf_counter()
            time.sleep(self._cost_s(shard))
            self.busy.append((began, time.perf_counter()))
            self._answer(call, Receipt(shard, 1, 1, {}, {}))


class SleepingPool:
    """A node of `SleepingWorker`s; a shard costs what ``cost_s`` says of its number."""

    def __init__(self, cost_s: Callable[[int], float]) -> None:
        self._cost_s = cost_s
        self._answers: dict[int, Any] = {}
        self._answered = threading.Condition()
        self._numbers = count()
        self.workers = list[SleepingWorker]()

    def nodes(self) -> list[Node]:
        return [Node("node", "host", WORKERS, 0)]

    def may_grow(self) -> bool:
        return False

    def is_alive(self) -> bool:
        return True

    def require_alive(self) -> None:
        pass

    def start(self, node: str, share: Share) -> SleepingWorker:
        self.workers.append(SleepingWorker(self._cost_s, self._take))
        return self.workers[-1]

    def node_of(self, handle: SleepingWorker) -> str:
        return "node"

    def ask(self, handle: SleepingWorker, method: str, *values: Any) -> int:
        call = next(self._numbers)
        if method == "run":
            handle.send(call, values[0].shard.index)
            return call
        self._take(
            call, Ready(SETTINGS, {}, "host", "journal", 1, 1000, key="key") if method == "load" else None
        )
        return call

    def tell(self, handle: SleepingWorker, method: str, *values: Any) -> None:
        handle.withdraw(values[0])

    def wait(self, calls: Iterable[Any], timeout_s: float) -> Sequence[Any]:
        asked = list(calls)
        with self._answered:
            self._answered.wait_for(lambda: any(call in self._answers for call in asked), timeout_s)
            return [call for call in asked if call in self._answers]

    def answer(self, call: Any) -> Any:
        return self._answers.pop(call)

    def kill(self, handle: SleepingWorker) -> None:
        handle.end()

    def call_on(self, nodes: Sequence[str], function: Callable[[Any], Any], value: Any) -> Mapping[str, Any]:
        return {node: function(value) for node in nodes}

    def _take(self, call: int, answer: Any) -> None:
        with self._answered:
            self._answers[call] = answer
            self._answered.notify()


class Kept:
    """Settings that leave nothing to measure."""

    def sample(self, ready: Ready, workers: int) -> TuningSample | None:
        return None

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        return {ready.key: ready.settings}


def busy_share(lengths: Sequence[int], seed: int) -> tuple[float, float, float]:
    """Return the busy share of the workers, that of the best order in hand, and the driver's processor share.

    The share is of the time from the first shard's begin to the last one's end.
    """
    random_ = random.Random(seed)
    costs = [length * IMAGE_S * random_.uniform(0.5, 1.5) for length in lengths]
    pool = SleepingPool(costs.__getitem__)
    with tempfile.TemporaryDirectory() as folder:
        compute = {"workers": WORKERS, "cpus_per_worker": 1}
        data = {"task": {"name": "tests.toy:Toy"}, "input": folder, "output": folder, "compute": compute}
        source: Any = None  # Nothing is read.
        order = LoadOrder(MapJob.model_validate(data), source, Output(folder, Storage()), False, None)
        work = (Work(Shard(number, (REF,))) for number in range(len(lengths)))
        processor_s = time.thread_time()
        receipts = list(Scheduler(pool, order, Kept(), print).predict(work, ()))
        processor_s = time.thread_time() - processor_s
    assert sorted(receipt.shard for receipt in receipts) == list(range(len(lengths)))
    spans = [span for worker in pool.workers for span in worker.busy]
    whole_s = max(end for _, end in spans) - min(begin for begin, _ in spans)
    busy_s = sum(end - begin for begin, end in spans)
    return busy_s / (WORKERS * whole_s), greedy_share(costs), processor_s / whole_s


def greedy_share(costs: Sequence[float]) -> float:
    """Return the share if each worker took the next shard in no time."""
    free = [0.0] * WORKERS
    for cost in costs:
        heapreplace(free, free[0] + cost)
    return sum(free) / (WORKERS * max(free))


def planned() -> list[int]:
    """Return the lengths of the shards of a plan that has `SHARDS` of them."""
    images = 789_000
    lengths = [len(shard.refs) for shard in plan.shards(repeat(REF, images), SmallEnds(OWN))]
    assert len(lengths) == SHARDS, len(lengths)
    return lengths


def main(runs: int = 3) -> None:
    """Print how busy the workers were, with a plan's shards and with equal ones."""
    console = Console()
    for name, lengths in (("planned", planned()), ("equal", [OWN] * SHARDS)):
        for seed in range(runs):
            share, greedy, processor = busy_share(lengths, seed)
            console.print(
                f"{WORKERS} workers, {len(lengths):,} {name} shards: busy {share:.1%} of their time "
                f"({greedy:.1%} if the next shard came in no time); the driver {processor:.0%} of a core"
            )


if __name__ == "__main__":
    main()
