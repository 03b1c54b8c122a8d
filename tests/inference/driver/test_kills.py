"""Kill -9 of the driver and of a node, and two commands at once: the same command continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from cnnbatch.errors import OutputHeld, UserError
from cnnbatch.inference.run import run
from cnnbatch.job import to_yaml
from cnnbatch.output import lock
from cnnbatch.output.folder import Output
from cnnbatch.storage import Storage
from tests.clusters import cluster_of
from tests.inference.test_run import QUIET, job, parts, table
from tests.places import CHECKOUT

pytestmark = pytest.mark.slow


def command(folder: Path, spec: Any, *options: str) -> subprocess.Popen[str]:
    """Start the command line on a job, in a process of its own."""
    path = folder / "job.yaml"
    path.write_text(to_yaml(spec))
    return subprocess.Popen(
        [sys.executable, "-m", "cnnbatch", "run", str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
        cwd=CHECKOUT,
    )


def wait_for_part(out: Path) -> None:
    deadline = time.monotonic() + 180
    while not (out / "predictions").exists() or not parts(out):
        assert time.monotonic() < deadline, "no part within three minutes"
        time.sleep(0.05)


def require_every_key_once(out: Path, count: int) -> None:
    rows = table(out).to_pylist()
    assert len(rows) == count
    assert len({row["key"] for row in rows}) == count
    assert not any(row["error"] for row in rows)


def test_a_killed_driver_costs_no_finished_part(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(80), tmp_path / "out"
    spec = job(folder, out, {"fault": "slow"}, compute={"pool": "ray", "workers": 2})
    driver = command(tmp_path, spec)
    wait_for_part(out)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    kept = parts(out)
    assert 0 < len(kept) < 8
    again = command(tmp_path, spec)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert {name: parts(out)[name] for name in kept} == kept
    require_every_key_once(out, 80)


@pytest.mark.parametrize("option", ["--new", "--retry-failed"])
def test_a_killed_driver_replaces_no_part_in_half(
    option: str, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(60), tmp_path / "out"
    pictures = sorted(folder.rglob("*.jpg"))
    whole = pictures[0].read_bytes()
    changed = pictures[5::10]  # One a shard.
    for path in changed:
        path.write_bytes(whole[:100])
    spec = job(folder, out, {"fault": "slow"}, max_failed=1.0)
    run(spec, QUIET)
    before = parts(out)
    for path in changed:
        path.write_bytes(whole)
    spec = job(folder, out, {"fault": "slow"}, max_failed=1.0, compute={"pool": "local", "workers": 1})
    driver = command(tmp_path, spec, option)
    deadline = time.monotonic() + 180
    while sum(parts(out)[name] != data for name, data in before.items()) < 2:
        assert time.monotonic() < deadline, "no part was replaced within three minutes"
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    kept = {name: data for name, data in parts(out).items() if data != before[name]}
    assert len(kept) < 6
    again = command(tmp_path, spec, option)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert {name: parts(out)[name] for name in kept} == kept
    require_every_key_once(out, 60)


def test_of_two_commands_started_together_one_runs_and_the_other_exits_4(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(40), tmp_path / "out"
    spec = job(folder, out, {"fault": "slow"})
    both = [command(tmp_path, spec), command(tmp_path, spec)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 4], said
    require_every_key_once(out, 40)


def test_a_crash_in_one_process_is_known_to_the_next_run(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(12), tmp_path / "out"
    spec = job(folder, out, {"fault": "kill", "at": "00007"}, compute={"pool": "auto"}, max_failed=0.2)
    first = command(tmp_path, spec)
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    again = command(tmp_path, spec)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    rows = {row["key"]: row for row in table(out).to_pylist()}
    assert {key: row["error"]["code"] for key, row in rows.items() if row["error"]} == {
        "album-1/00007.jpg": "crash"
    }
    assert len(rows) == 12


def test_a_hang_in_one_process_ends_it(photos: Callable[[int], Path], tmp_path: Path) -> None:
    spec = job(
        photos(3), tmp_path / "out", {"fault": "hang", "at": "00001"}, compute={"batch_timeout_s": 2.0}
    )
    process = command(tmp_path, spec)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "compute.batch_timeout_s" in said
    assert list((tmp_path / "out" / "_job" / "suspects").iterdir())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a Ray of one node; `second_node` gives it another."""
    with cluster_of({"num_cpus": 2}) as cluster:
        yield cluster


@contextmanager
def second_node(cluster: Cluster) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield node
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a path that one process sees and others do not")
def test_a_path_that_a_node_does_not_see_is_refused_before_the_first_shard(
    cluster: Cluster, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    mine = os.open(tmp_path, os.O_RDONLY)
    spec = job(photos(20), f"/proc/self/fd/{mine}", compute={"pool": "ray"})
    with second_node(cluster), pytest.raises(UserError, match="must be shared"):
        run(spec, QUIET)
    os.close(mine)
    assert not (tmp_path / "predictions").exists()


def test_a_node_that_joins_is_used_and_one_that_is_lost_costs_no_image(
    cluster: Cluster, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out, flags = photos(200), tmp_path / "out", tmp_path / "flags"
    flags.mkdir()
    spec = job(folder, out, {"fault": "gather", "flag": str(flags)}, compute={"pool": "ray"})
    with ThreadPoolExecutor(1) as thread:  # Nodes can be added by the main thread only.
        running = thread.submit(run, spec, QUIET)
        wait_for_part(out)
        with second_node(cluster):
            wait_for(lambda: len([*flags.iterdir()]) == 4, "workers of both nodes")
            wait_for(lambda: len(workers_of(out)) > 2, "a part of the node that joined")
        assert not running.done()
        running.result(timeout=360)
    require_every_key_once(out, 200)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within four minutes"
        time.sleep(0.05)


def workers_of(out: Path) -> set[int]:
    """Return the processes that have written parts."""
    output = Output(str(out), Storage())
    return {footer["worker"] for footer in output.footers(output.finished())}


def test_a_zombie_that_writes_late_overwrites_nothing(photos: Callable[[int], Path], tmp_path: Path) -> None:
    from cnnbatch.inference.driver.planner import Planner
    from cnnbatch.inference.messages import LoadOrder, Work
    from cnnbatch.inference.worker_process import WorkerProcess
    from cnnbatch.sources import open_source
    from cnnbatch.types import Receipt

    folder, out = photos(20), tmp_path / "out"
    spec = job(folder, out)
    output, source = Output(str(out), Storage()), open_source(spec.input, Storage())
    zombie = WorkerProcess()
    zombie.load(LoadOrder(spec, source, output, True, None))
    run(spec, QUIET)
    before = parts(out)
    planner = Planner(output, source, spec.input, 10)
    for shard in planner.shards():
        assert shard is not None
        assert isinstance(zombie.run(Work(shard)), Receipt)
    zombie.close()
    assert parts(out) == before


def test_a_lock_of_a_killed_process_is_taken_at_once(tmp_path: Path) -> None:

    uri = str(tmp_path / "lock")
    script = (
        "import sys, time; from cnnbatch.output import lock; from cnnbatch.storage import Storage\n"
        "with lock.hold(Storage(), sys.argv[1], 'dead'):\n  print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, uri], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(OutputHeld), lock.hold(Storage(), uri, "too early"):
        pass
    holder.kill()
    holder.communicate()
    started = time.monotonic()
    with lock.hold(Storage(), uri, "next"):
        assert time.monotonic() - started < 5


def test_every_footer_tells_what_made_the_part(photos: Callable[[int], Path], tmp_path: Path) -> None:

    out = tmp_path / "out"
    run(job(photos(20), out), QUIET)
    footers = []
    for path in sorted((out / "predictions").iterdir()):
        footers.append(Output(str(out), Storage()).footer(int(path.stem.removeprefix("part-"))))
    assert len({footer["fingerprint"] for footer in footers}) == 1
    assert len({footer["digest"] for footer in footers}) == 2
    assert [footer["receipt"]["rows"] for footer in footers] == [10, 10]
    assert footers[0]["weights"] == "random:0"
