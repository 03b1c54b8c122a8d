"""Who gets which shard, on workers that answer as they are told, without any process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.cluster.nodes import Node, Share
from cnnbatch.inference.driver.pool import WorkerEnded, WorkerPool
from cnnbatch.inference.driver.scheduler import Scheduler
from cnnbatch.inference.messages import Fault, LoadOrder, Ready, TuningSample, Withdrawn, Work
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import ImageRef, Receipt, Shard
from tests.inference.test_run import job

SETTINGS = {"device": "cpu:none", "precision": "fp32"}
BROKEN = Fault("environment", "its disk is full", "make room")


class FakePool:
    """A pool whose workers answer at once: `run` by the node that they are on."""

    def __init__(self, nodes: Sequence[Node], run: Callable[[str, Work], Any]) -> None:
        self._nodes, self._run = list(nodes), run
        self._answers: dict[int, Any] = {}
        self._numbers = count()
        self.killed: list[Any] = []

    def nodes(self) -> list[Node]:
        return self._nodes

    def may_grow(self) -> bool:
        return False

    def is_alive(self) -> bool:
        return True

    def require_alive(self) -> None:
        pass

    def start(self, node: str, share: Share) -> tuple[str, int]:
        return node, next(self._numbers)

    def node_of(self, handle: tuple[str, int]) -> str:
        return handle[0]

    def ask(self, handle: tuple[str, int], method: str, *values: Any) -> int:
        answer: Any = None
        if method == "load":
            answer = Ready(SETTINGS, {}, handle[0], "journal", 1, 1000, key="cpu-none-fp32")
        elif method == "run":
            answer = self._run(handle[0], *values)
        self._answers[call := next(self._numbers)] = answer
        return call

    def tell(self, handle: tuple[str, int], method: str, *values: Any) -> None:
        pass

    def wait(self, calls: Iterable[Any], timeout_s: float) -> Sequence[Any]:
        return sorted(calls)[:1]  # The oldest first, one at a time.

    def answer(self, call: Any) -> Any:
        if isinstance(answer := self._answers.pop(call), WorkerEnded):
            raise answer
        return answer

    def kill(self, handle: tuple[str, int]) -> None:
        self.killed.append(handle)

    def call_on(self, nodes: Sequence[str], function: Any, value: Any) -> Mapping[str, Any]:
        return {node: ({0: [1]}, False) if function.__name__ == "take_journal" else [] for node in nodes}


class Kept:
    """Tuned settings that leave nothing open."""

    def sample(self, ready: Ready, workers: int) -> TuningSample | None:
        return None

    def keep(self, ready: Ready) -> Mapping[str, Any]:
        return {ready.key: ready.settings}


@pytest.fixture
def predict(photos: Callable[[int], Path], tmp_path: Path) -> Callable[..., list[Receipt]]:
    def run(pool: WorkerPool, shards: int, note: Callable[[str], None]) -> list[Receipt]:
        spec = job(photos(1), tmp_path / "out", compute={"pool": "ray", "workers": "auto"})
        output = Output(str(tmp_path / "out"), Storage())
        order = LoadOrder(spec, open_source(spec.input, Storage()), output, False, None)
        work = (Work(Shard(number, (ImageRef(f"{number}", ""),) * 2)) for number in range(shards))
        return list(Scheduler(pool, order, Kept(), note).predict(work, ()))

    return run


def done(work: Work) -> Receipt:
    failed = {str(failure.code): 1 for failure in work.condemned.values()}
    return Receipt(work.shard.index, 2, 2, failed, {})


def test_a_node_that_is_left_out_gives_each_of_its_shards_back_once(
    predict: Callable[..., list[Receipt]],
) -> None:
    said: list[str] = []
    nodes = [Node("good", "one", 1, 0), Node("bad", "other", 4, 0)]
    pool = FakePool(nodes, lambda node, work: done(work) if node == "good" else BROKEN)
    receipts = predict(pool, 30, said.append)
    assert sorted(receipt.shard for receipt in receipts) == list(range(30))
    assert said == ["other is left out: it fails what others do (its disk is full)"]
    assert {node for node, _ in pool.killed} == {"good", "bad"}


class Queueing(FakePool):
    """Workers that answer when they are told to: a shard takes ``cost`` turns, one after the other."""

    def __init__(self, nodes: Sequence[Node], cost: Callable[[str, Work], int]) -> None:
        super().__init__(nodes, lambda _, work: done(work))
        self._cost = cost
        self._queues: dict[Any, list[tuple[int, Work, int]]] = {}
        self.ran: list[tuple[str, int]] = []

    def tell(self, handle: tuple[str, int], method: str, *values: Any) -> None:
        assert method == "withdraw"
        for entry in self._queues.get(handle, [])[1:]:
            if entry[1].shard.index == values[0]:
                self._queues[handle].remove(entry)
                self._answers[entry[0]] = Withdrawn()

    def ask(self, handle: tuple[str, int], method: str, *values: Any) -> int:
        if method != "run":
            return super().ask(handle, method, *values)
        call = next(self._numbers)
        self._queues.setdefault(handle, []).append((call, values[0], self._cost(handle[0], values[0])))
        return call

    def wait(self, calls: Iterable[Any], timeout_s: float) -> Sequence[Any]:
        asked = [*calls]
        while not (answered := [call for call in asked if call in self._answers]):
            for handle, queue in self._queues.items():
                if not queue:
                    continue
                call, work, left = queue[0]
                queue[0] = (call, work, left - 1)
                if left == 1:
                    queue.pop(0)
                    self._answers[call] = done(work)
                    self.ran.append((handle[0], work.shard.index))
        return answered


def test_what_waits_in_a_busy_worker_goes_to_an_idle_one(predict: Callable[..., list[Receipt]]) -> None:
    nodes = [Node("slow", "one", 1, 0), Node("fast", "other", 1, 0)]
    pool = Queueing(nodes, lambda node, _: 1000 if node == "slow" else 10)
    receipts = predict(pool, 20, print)
    assert sorted(receipt.shard for receipt in receipts) == list(range(20))
    assert len(pool.ran) == 20  # None was predicted twice.
    assert [node for node, _ in pool.ran].count("slow") == 1
    assert pool.ran[-1][0] == "slow"


def test_an_image_that_ends_two_workers_is_condemned_by_its_journal(
    predict: Callable[..., list[Receipt]],
) -> None:
    class Ending(FakePool):
        def ask(self, handle: tuple[str, int], method: str, *values: Any) -> int:
            call = super().ask(handle, method, *values)
            if method == "try_alone" and values[1] == 1:
                self._answers[call] = WorkerEnded("it crashed")
            return call

    def run(_: str, work: Work) -> Any:
        is_new = work.shard.index == 0 and not work.condemned
        return WorkerEnded("it crashed") if is_new else done(work)

    receipts = predict(Ending([Node("a", "one", 2, 0)], run), 4, print)
    assert {receipt.shard: receipt.failed for receipt in receipts} == {0: {"crash": 1}, 1: {}, 2: {}, 3: {}}


def test_a_remembered_way_that_ends_its_worker_is_not_taken_again(
    photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(FakePool):
        def ask(self, handle: tuple[str, int], method: str, *values: Any) -> int:
            call = super().ask(handle, method, *values)
            if method == "load" and values[0].remembered:
                self._answers[call] = WorkerEnded("it crashed")
            return call

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    spec = job(photos(1), tmp_path / "out", compute={"pool": "ray", "workers": "auto"})
    known: Any = ("a way",)
    source, output = open_source(spec.input, Storage()), Output(str(tmp_path / "out"), Storage())
    order = LoadOrder(spec, source, output, False, None, known)
    pool = Ending([Node("a", "one", 1, 0)], lambda _, work: done(work))
    receipts = Scheduler(pool, order, Kept(), print).predict(iter([Work(Shard(0, ()))]), ())
    assert [receipt.shard for receipt in receipts] == [0]
