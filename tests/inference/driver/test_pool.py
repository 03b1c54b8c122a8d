"""The same rows on local processes and on Ray actors, whatever is killed; one cluster serves all tests."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle
from ray.cluster_utils import Cluster

from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.autotune.store import SettingsStore
from cnnbatch.inference.driver.local_workers import LocalWorkers
from cnnbatch.inference.driver.planner import Planner
from cnnbatch.inference.driver.pools import open_pool
from cnnbatch.inference.driver.remote import RemoteWorker
from cnnbatch.inference.driver.scheduler import Scheduler
from cnnbatch.inference.messages import LoadOrder, Work
from cnnbatch.inference.run import run
from cnnbatch.output.folder import Output
from cnnbatch.sources import open_source
from cnnbatch.storage import Entry, Storage
from tests.clusters import cluster_of
from tests.inference.test_run import QUIET, break_some, job, parts, table

On = Callable[..., dict[str, Any]]
"""Makes the ``compute`` section of a pool, with two workers and no GPU unless it is told otherwise."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of({"num_cpus": 6, "num_gpus": 4, "object_store_memory": 10**8}) as cluster:
        yield cluster


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def on_pool(request: pytest.FixtureRequest) -> On:
    """Return what makes the ``compute`` section of either pool, whose workers are there or can be started."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return lambda **compute: {"pool": request.param, "gpus_per_worker": 0.0, "workers": 2, **compute}


def workers() -> list[psutil.Process]:
    """Return the processes of workers, of either pool."""
    below = psutil.Process().children(recursive=True)
    servers = {process.pid for process in below if _is_of(process, "cnnbatch.cluster.local")}
    forked = [process for process in below if process.ppid() in servers]
    return forked + [process for process in below if _is_of(process, "WorkerProcess")]


def _is_of(process: psutil.Process, word: str) -> bool:
    return any(word in one for one in process.cmdline())


@pytest.mark.slow
def test_one_worker_four_workers_and_inline_write_equal_tables(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = photos(60)
    broken = break_some(folder)
    outs = [tmp_path / name for name in ("inline", "one", "four")]
    run(job(folder, outs[0]), QUIET)
    run(job(folder, outs[1], compute=on_pool(workers=1)), QUIET)
    run(job(folder, outs[2], compute=on_pool(workers=4)), QUIET)
    tables = [table(out) for out in outs]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].num_rows == 60
    failed = {row["key"]: row["error"]["code"] for row in tables[2].to_pylist() if row["error"]}
    assert failed == broken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code"),
    [("raise", "predict"), ("kill", "crash"), ("hang", "timeout"), ("memory", "out_of_memory")],
)
def test_an_image_that_breaks_its_worker_gets_its_row(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path, fault: str, code: str
) -> None:
    folder, out = photos(24), tmp_path / "out"
    spec = job(folder, out, {"fault": fault, "at": "00007"}, compute=on_pool(batch_timeout_s=2.0))
    summary = run(spec, QUIET)
    rows = {row["key"]: row for row in table(out).to_pylist()}
    assert len(rows) == 24
    errors = {key: row["error"]["code"] for key, row in rows.items() if row["error"]}
    assert errors == {"album-1/00007.jpg": code}
    assert summary.failed == {code: 1}


@pytest.mark.slow
def test_a_worker_killed_in_mid_shard_costs_nothing(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(60), tmp_path / "out"
    killed: list[int] = []

    def kill_one() -> None:
        while not (out / "predictions").exists():
            time.sleep(0.05)
        victim = workers()[0]
        killed.append(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)

    threading.Thread(target=kill_one, daemon=True).start()
    summary = run(job(folder, out, {"fault": "slow"}, compute=on_pool()), QUIET)
    assert killed
    rows = table(out).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows) == 60
    assert not any(row["error"] for row in rows)
    assert summary.exit_status == 0


@pytest.mark.slow
def test_the_same_output_goes_on_with_other_workers(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out, whole = photos(60), tmp_path / "out", tmp_path / "whole"
    run(job(folder, whole), QUIET)
    run(job(folder, out, input={"limit": 60}, compute=on_pool(workers=1)), QUIET)
    for gone, compute in (
        ((0, 2, 5), on_pool(workers=3, batch=3)),
        ((1, 3), {"pool": "inline", "batch": 5}),
    ):
        for index in gone:
            (out / "predictions" / f"part-{index:08}.parquet").unlink()
        kept = parts(out)
        run(job(folder, out, compute=compute), QUIET)
        assert {name: parts(out)[name] for name in kept} == kept
        columns = ["key", "error", "label"]
        assert table(out).select(columns) == table(whole).select(columns)


@pytest.mark.slow
def test_a_broken_device_everywhere_stops_the_run_and_writes_nothing(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.inference.driver.retries.BACKOFFS_S", (0.1,))
    folder, out, flag = photos(12), tmp_path / "out", tmp_path / "broken"
    flag.touch()
    spec = job(folder, out, {"fault": "device", "flag": str(flag)}, compute=on_pool(workers=1))
    with pytest.raises(EnvironmentFault, match="random pixels"):
        run(spec, QUIET)
    assert not (out / "predictions").exists()
    flag.unlink()
    assert run(spec, QUIET).images == 12


@pytest.mark.slow
def test_four_gpus_have_a_worker_each(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalWorkers, "_visible_gpus", lambda _: ["0", "1", "2", "3"])
    folder, out = photos(240), tmp_path / "out"  # Enough that the last of the workers gets some, too.
    spec = job(folder, out, {"fault": "tell-device"}, compute=on_pool(workers=4, gpus_per_worker="auto"))
    run(spec, QUIET)
    assert {row["label"] for row in table(out).to_pylist()} == {"0", "1", "2", "3"}


def test_more_workers_than_there_is_room_for_is_an_error_that_says_what_is_there(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalWorkers, "_visible_gpus", lambda _: ["0", "1", "2", "3"])
    compute = on_pool(workers=5, gpus_per_worker=1.0, start_timeout_s=0.5)
    spec = job(photos(4), tmp_path / "out", compute=compute)
    with pytest.raises(EnvironmentFault, match=r"expected at least 5 workers .* 1 GPUs each.* CPUs, 4 GPUs"):
        run(spec, QUIET)


def test_nothing_but_paths_and_receipts_goes_to_workers_and_back(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 0
    ask = RemoteWorker.ask

    def measured(self: RemoteWorker, kind: Any, about: Any, method: str, *values: Any) -> None:
        nonlocal largest
        largest = max(
            largest,
            *(
                len(cloudpickle.dumps(value))  # type: ignore[no-untyped-call]
                for value in values
            ),
        )
        ask(self, kind, about, method, *values)

    monkeypatch.setattr(RemoteWorker, "ask", measured)
    run(job(photos(60), tmp_path / "out", input={"shard_size": 60}, compute=on_pool(workers=1)), QUIET)
    assert 0 < largest < 60 * 300


def test_the_first_part_does_not_wait_for_a_listing_that_never_ends(
    on_pool: On, photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = photos(20), tmp_path / "out"
    real = sorted(folder.rglob("*.jpg"))

    listed = Storage.list

    def endless(self: Storage, uri: str, after: str | None = None) -> Iterator[Entry]:
        if not uri.endswith("photos"):
            yield from listed(self, uri, after)
            return
        for number in itertools.count():
            yield Entry(str(real[number]) if number < 20 else f"{uri}/gone-{number:012}.jpg", 1, None)

    spec = job(folder, out, compute=on_pool(workers=1))
    output, source = Output(str(out), Storage()), open_source(spec.input, Storage())
    monkeypatch.setattr(Storage, "list", endless)
    planner = Planner(output, source, spec.input, 10)
    planner.start()
    order = LoadOrder(spec, source, output, False, None)
    works = (None if shard is None else Work(shard) for shard in planner.shards())
    with open_pool(spec.compute) as pool:
        receipts: Any = Scheduler(pool, order, SettingsStore(spec, output), print).predict(works, ())
        assert next(receipts).rows == 10  # It would never come after the listing.
        assert not planner.complete
        assert (out / "predictions").exists()
        receipts.close()
    planner.stop()
