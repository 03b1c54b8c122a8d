"""What happens to workers on this machine: the promised rows or a clear error, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.driver import local_workers, retries
from cnnbatch.inference.run import run
from cnnbatch.types import Runtime
from tests.inference.driver.test_kills import command, require_every_key_once, wait_for_part
from tests.inference.driver.test_pool import workers
from tests.inference.test_run import QUIET, job
from tests.toy import Toy, ToyModel

LOCAL = {"pool": "local", "workers": 2}


class DiesAtStart(Toy):
    """A task whose worker is killed while it loads, once, or always where ``flag`` is none."""

    def load(self, runtime: Runtime) -> ToyModel:
        """Die, or build the network."""
        if not self.flag or not Path(self.flag).exists():
            if self.flag:
                Path(self.flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(runtime)


class NeedsMain(Toy):
    """A task that looks for something of the program that was started."""

    def load(self, runtime: Runtime) -> ToyModel:
        """Import it."""
        from __main__ import no_such_function

        return no_such_function(self)  # type: ignore[no-any-return]


def die() -> None:
    """Be ended, as the process that others are forked from is where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def once_there_is_a_part(out: Path, act: Callable[[], object]) -> Iterator[None]:
    def wait_and_act() -> None:
        wait_for_part(out)
        act()

    acting = threading.Thread(target=wait_and_act)
    acting.start()
    yield
    acting.join()


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a run start a server of its own."""
    monkeypatch.setattr(local_workers, "_kept", None)
    yield
    if local_workers._kept is not None:
        local_workers._kept.close()


@pytest.mark.slow
def test_the_fork_server_killed_costs_nothing(
    no_server: None, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(60), tmp_path / "out"
    killed: list[int] = []

    def kill_server() -> None:
        killed.append(workers()[0].ppid())
        os.kill(killed[0], signal.SIGKILL)

    with once_there_is_a_part(out, kill_server):
        summary = run(job(folder, out, {"fault": "slow"}, compute=LOCAL), QUIET)
    assert summary.exit_status == 0
    require_every_key_once(out, 60)
    assert not psutil.pid_exists(killed[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preload", "words"),
    [
        (f"{__name__}:die", "the process that starts the others was ended by SIGKILL"),
        ("no_such_module:preload", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_fork_server_that_never_comes_up_ends_the_run(
    no_server: None,
    preload: str,
    words: str,
    photos: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_workers, "PRELOAD", preload)
    monkeypatch.setattr(retries, "BACKOFFS_S", (0.1,))
    with pytest.raises(EnvironmentFault, match=words):
        run(job(photos(30), tmp_path / "out", compute=LOCAL), QUIET)
    assert not (tmp_path / "out" / "predictions").exists()


@pytest.mark.slow
def test_a_worker_killed_while_it_starts(
    photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "BACKOFFS_S", (0.1,))
    name, folder = f"{__name__}:DiesAtStart", photos(24)
    with pytest.raises(EnvironmentFault, match="ended while it loaded the model: it was ended by SIGKILL"):
        run(job(folder, tmp_path / "never", {"name": name}, compute=LOCAL), QUIET)
    assert not (tmp_path / "never" / "predictions").exists()
    run(job(folder, tmp_path / "out", {"name": name, "flag": str(tmp_path / "flag")}, compute=LOCAL), QUIET)
    require_every_key_once(tmp_path / "out", 24)


@pytest.mark.slow
def test_a_stopped_workers_shard_goes_elsewhere(
    photos: Callable[[int], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(60), tmp_path / "out"
    compute = {"pool": "local", "workers": 1, "batch_timeout_s": 5.0}
    stopped: list[psutil.Process] = []

    def stop() -> None:
        stopped.extend(workers())
        for process in stopped:
            process.suspend()

    with once_there_is_a_part(out, stop):
        run(job(folder, out, {"fault": "slow"}, compute=compute))
    require_every_key_once(out, 60)
    assert "a worker has been silent" in capfd.readouterr().err
    assert stopped
    assert not any(process.is_running() for process in stopped)


@pytest.mark.slow
def test_what_needs_the_program_that_was_started_is_said(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    spec = job(photos(24), tmp_path / "out", {"name": f"{__name__}:NeedsMain"}, compute=LOCAL)
    with pytest.raises(UserError, match="a worker can't import what the job needs: .*no_such_function"):
        run(spec, QUIET)


def test_more_workers_than_a_machine_can_start_is_the_persons_mistake(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="compute.workers: expected at most .* on this machine's"):
        run(job(photos(3), tmp_path / "out", compute={"pool": "local", "workers": 9999}), QUIET)


def left_below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [*psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.slow
def test_ctrl_c_at_every_stage_leaves_nothing_and_loses_nothing(
    photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(60), tmp_path / "out"
    spec = job(folder, out, {"fault": "slow"}, compute=LOCAL)
    moments_s = (0.2, 0.7, 1.2, 1.8, 2.5, 3.5, 5.0)
    kept: dict[str, bytes] = {}
    for moment_s in moments_s:
        process = command(tmp_path, spec)
        time.sleep(moment_s)
        below = left_below(process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode in (130, 0), said
        assert "Traceback" not in said
        assert not (out / "_job" / "lock").exists()
        psutil.wait_procs(below, timeout=5)
        assert not [one for one in below if one.is_running()]
        found = {path.name: path.read_bytes() for path in out.glob("predictions/part-*")}
        assert kept.items() <= found.items()
        kept = found
    run(spec, QUIET)
    require_every_key_once(out, 60)


@pytest.mark.slow
def test_sigterm_ends_all_and_says_how_to_go_on(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    process = command(tmp_path, job(folder, out, {"fault": "slow"}, compute=LOCAL))
    wait_for_part(out)
    below = left_below(process)
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith("Stopped. Finished parts are kept; the same command continues:")
    psutil.wait_procs(below, timeout=5)
    assert not [one for one in below if one.is_running()]
    assert not (out / "_job" / "lock").exists()
