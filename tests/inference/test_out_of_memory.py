"""A device that is out of memory costs time: every image keeps its row, and the machine's fault is none's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.messages import Fault, LoadOrder, Work
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.inference.worker_process import WorkerProcess
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
from cnnbatch.types import Failure, Receipt, Shard
from tests.inference.test_run import QUIET, job, table


def require_alike(rows: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Require the same images, labels and errors; a batch of another size rounds otherwise."""
    for name in ("key", "label", "error"):
        assert [row[name] for row in rows] == [row[name] for row in wanted]
    found, expected = ([row["values"] or [0.0] * 8 for row in some] for some in (rows, wanted))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("fits", [1, 3])
def test_batches_that_do_not_fit_give_the_same_rows(
    photos: Callable[[int], Path], tmp_path: Path, fits: int
) -> None:
    folder, out, plain = photos(27), tmp_path / "out", tmp_path / "plain"
    run(job(folder, plain), QUIET)
    summary = run(job(folder, out, {"fault": "memory", "fits": fits}), QUIET)
    require_alike(table(out).to_pylist(), table(plain).to_pylist())
    assert (summary.images, summary.exit_status) == (27, 0)


def test_an_image_that_does_not_fit_alone_has_its_row_and_may_be_tried_again(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out, plain = photos(30), tmp_path / "out", tmp_path / "plain"
    run(job(folder, plain), QUIET)
    spec = job(folder, out, {"fault": "memory", "at": "/0001"})  # Ten of thirty.
    summary = run(spec, QUIET)
    rows, wanted = table(out).to_pylist(), table(plain).to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in wanted]
    too_large = [row for row in rows if "/0001" in row["key"]]
    assert len(too_large) == 10
    assert summary.failed == {"out_of_memory": 10}
    for row in too_large:
        assert (row["error"]["stage"], row["error"]["code"]) == ("predict", "out_of_memory")
        assert "planted" in row["error"]["message"]
        assert (row["label"], row["width"], row["height"]) == (None, 64, 48)
    good = [place for place, row in enumerate(rows) if row["error"] is None]
    require_alike([rows[place] for place in good], [wanted[place] for place in good])
    assert run(spec, RunOptions(retry_failed=True, quiet=True)).images == 10


def test_a_device_without_memory_writes_no_row(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(12), tmp_path / "out"
    with pytest.raises(EnvironmentFault, match="no memory left.*planted") as fault:
        run(job(folder, out, {"fault": "memory", "fits": 0}), QUIET)
    assert "look what else runs on it" in fault.value.mend
    assert not (out / "predictions").exists()


@contextmanager
def loaded(spec: Any) -> Iterator[tuple[WorkerProcess, Shard]]:
    """Load a worker process for a job, with one shard of all its images."""
    source = open_source(spec.input, Storage())
    process = WorkerProcess()
    order = LoadOrder(spec, source, Output(spec.output.url, Storage()), True, None)
    ready = process.load(order)
    assert not isinstance(ready, Fault)
    try:
        yield process, Shard(0, tuple(source.refs()))
    finally:
        process.close()


def test_a_worker_process_answers_with_a_receipt(photos: Callable[[int], Path], tmp_path: Path) -> None:
    spec = job(photos(12), tmp_path / "out", {"fault": "memory", "at": "00007"})
    with loaded(spec) as (process, shard):
        answer = process.run(Work(shard))
        assert isinstance(answer, Receipt)
        assert (answer.rows, answer.failed) == (12, {"out_of_memory": 1})
        alone = process.try_alone(shard, [ref.key for ref in shard.refs].index("album-1/00007.jpg"))
        assert isinstance(alone, Failure)
        assert (alone.stage, alone.code) == ("predict", "out_of_memory")
        assert process.probe() is None


def test_a_worker_process_without_memory_answers_with_a_fault(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with loaded(job(photos(12), out, {"fault": "memory", "fits": 0})) as (process, shard):
        for answer in (process.run(Work(shard)), process.try_alone(shard, 3), process.probe()):
            assert isinstance(answer, Fault)
            assert (answer.kind, "no memory left" in answer.what) == ("environment", True)
    assert not (out / "predictions").exists()
