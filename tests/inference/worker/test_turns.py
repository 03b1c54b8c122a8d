"""A shard that waits for another one in a worker can be withdrawn, and no other can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnbatch.inference.messages import LoadOrder, Withdrawn, Work
from cnnbatch.inference.worker.turns import ShardWithdrawn, Turn, Turns
from cnnbatch.inference.worker_process import WorkerProcess
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import Receipt, Shard
from tests.inference.test_run import job, parts


def test_only_a_shard_that_waits_is_withdrawn() -> None:
    turns = Turns()
    with turns.waiting(1), Turn(turns, 1) as first:
        first.take()
        assert not turns.withdraw(1)  # It has its turn.
        with turns.waiting(2), Turn(turns, 2) as second:
            assert turns.withdraw(2)
            assert not turns.withdraw(2)
            with pytest.raises(ShardWithdrawn):
                second.take()
        assert not turns.withdraw(2)  # It is gone.
    with turns.waiting(2), Turn(turns, 2) as again:
        again.take()


@pytest.mark.slow
@pytest.mark.parametrize("device_overlaps", [False, True])
def test_a_withdrawn_shard_is_not_predicted_and_can_be_run_again(
    device_overlaps: bool, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    spec = job(photos(20), tmp_path / "out", {"fault": "slow"})
    output, source = Output(str(tmp_path / "out"), Storage()), open_source(spec.input, Storage())
    refs = [*source.refs()]
    works = [Work(Shard(0, tuple(refs[:10]))), Work(Shard(1, tuple(refs[10:])))]
    process = WorkerProcess()
    process.load(LoadOrder(spec, source, output, True, None))
    process._loaded()._ahead.overlaps = device_overlaps  # Then the device is taken with the first window.
    answers: dict[int, object] = {}

    def run(work: Work) -> None:
        answers[work.shard.index] = process.run(work)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    threads[0].start()
    while process._loaded()._turns._holder is None:
        time.sleep(0.01)
    threads[1].start()
    while 1 not in process._loaded()._turns._waiting:
        time.sleep(0.01)
    process.withdraw(1)
    threads[1].join(10)
    assert isinstance(answers[1], Withdrawn)
    assert 0 not in answers  # It did not have to wait for the other one.
    process.withdraw(0)
    threads[0].join(60)
    assert isinstance(answers[0], Receipt)
    assert [*parts(tmp_path / "out")] == ["part-00000000.parquet"]
    assert isinstance(process.run(works[1]), Receipt)
    process.close()
    assert len(parts(tmp_path / "out")) == 2
