"""Ray's own processes die or are not there: one sentence, status 3, nothing left; signals end any command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private.utils import check_version_info

from cnnbatch.cluster import address as ray_address
from cnnbatch.cluster import session as ray_session
from cnnbatch.cluster.nodes import Node, Share, lacking
from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.driver import remote
from cnnbatch.inference.driver.remote import Heartbeats, RemoteWorker
from cnnbatch.inference.run import run
from tests.inference.driver.test_kills import command, require_every_key_once, wait_for_part
from tests.inference.test_run import QUIET, job
from tests.places import CHECKOUT

PATIENCE_S = 180


@pytest.mark.parametrize("value", ["", " ", "auto"])
def test_without_an_address_a_ray_is_looked_for(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert ray_address.chosen() == "auto"


@pytest.mark.parametrize("value", ["local", "10.0.0.5:6379", "[::1]:6379", "head.example:1"])
def test_an_address_is_taken_as_it_is(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert ray_address.chosen() == value


@pytest.mark.parametrize(
    "value",
    ["ray://127.0.0.1:10001", "http://a:1", "nonsense", "a:0", "a:65536", "a:b", ":6379", "a b:1", "LOCAL"],
)
def test_what_is_no_address_is_the_users_mistake(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    with pytest.raises(UserError, match=r"RAY_ADDRESS: expected auto, local, or HOST:PORT"):
        ray_address.chosen()


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_where_nothing_answers_it_is_said_at_once() -> None:
    with listening() as server:
        port = server.getsockname()[1]
    with pytest.raises(EnvironmentFault, match="no Ray cluster answers there"):
        ray_address.require_answer(f"127.0.0.1:{port}")
    with pytest.raises(EnvironmentFault, match=r"no host nobody\.invalid"):
        ray_address.require_answer("nobody.invalid:6379")


def test_what_answers_but_is_no_ray_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_S", 0.5)
    with listening() as silent, pytest.raises(EnvironmentFault, match="not a Ray head node"):
        ray_address.require_answer(f"127.0.0.1:{silent.getsockname()[1]}")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(EnvironmentFault, match="not a Ray head node"):
            ray_address.require_answer(f"127.0.0.1:{web.server_address[1]}")
        web.shutdown()


def test_a_ray_that_wants_a_token_is_joined_where_rays_client_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"Check": b"\x00\x00\x00\x00\x02\x08\x01", "CheckAlive": b"InvalidAuthToken: missing"}
    monkeypatch.setattr(ray_address, "_asked", lambda place, path: answers[path.rpartition("/")[2]])
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with listening() as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(EnvironmentFault, match="wants a token"):
            ray_address.require_answer(address, found=True)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a" * 64)  # As Ray leaves it.
        ray_address.require_answer(address, found=True)
        with pytest.raises(EnvironmentFault, match="wants a token"):
            ray_address.require_answer(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(EnvironmentFault, match="wants a token"):
            ray_address.require_answer(address, found=True)


class Process:
    """What psutil says of a process."""

    def __init__(self, pid: int, *command: str, parent: Process | None = None) -> None:
        self.pid, self._command, self._parent = pid, command, parent
        self.info = {"name": Path(command[0]).name}

    def parent(self) -> Process | None:
        return self._parent

    def cmdline(self) -> list[str]:
        if not self._command[1:]:
            raise psutil.AccessDenied(self.pid)
        return [*self._command]


INIT = Process(1, "/sbin/init", "splash")
NOTEBOOK = Process(40, "/usr/bin/python", "-m", "ipykernel_launcher")
BLOCKING = Process(50, "/usr/bin/python", "/usr/bin/ray", "start", "--head", "--block")


def raylet(port: int, session: int, parent: Process) -> Process:
    options = (f"--gcs-address=10.0.0.5:{port}", f"--session-name=session_2026-01-01_0_0_{session}")
    return Process(port, "/ray/raylet/raylet", *options, "--head", parent=parent)


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """Return a function that says which Ray is joined, by what runs, is noted, and doesn't answer."""

    def joined(*running: Process, noted: str | None = None, silent: tuple[str, ...] = ()) -> str | None:
        def ask(address: str, found: bool = False) -> None:
            if address in silent:
                raise EnvironmentFault("no answer", "")

        if noted is not None:
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(noted)
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        monkeypatch.setattr(psutil, "process_iter", lambda attributes: iter(running))
        monkeypatch.setattr(ray_address, "require_answer", ask)
        return ray_address.cluster_address()

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return joined


def test_a_ray_that_runs_on_this_machine_is_joined(answering: Callable[..., str | None]) -> None:
    assert answering(INIT, Process(7, "raylet"), NOTEBOOK) is None
    assert answering(INIT, raylet(6379, 33, INIT)) == "10.0.0.5:6379"
    assert answering(raylet(6379, 50, BLOCKING)) == "10.0.0.5:6379"
    assert answering(raylet(6379, 33, INIT), silent=("10.0.0.5:6379",)) is None


def test_of_several_rays_the_one_noted_last_that_answers_is_joined(
    answering: Callable[..., str | None],
) -> None:
    both = raylet(6379, 33, INIT), raylet(6380, 34, INIT)
    assert answering(*both, noted="10.0.0.5:6380\n") == "10.0.0.5:6380"
    assert answering(*both, silent=("10.0.0.5:6380",)) == "10.0.0.5:6379"
    assert answering() == "10.0.0.5:6380"


def test_a_ray_that_a_program_started_for_itself_is_not_joined(
    answering: Callable[..., str | None],
) -> None:
    own = raylet(6379, NOTEBOOK.pid, NOTEBOOK)
    assert answering(own) is None
    assert answering(own, raylet(6380, 33, INIT)) == "10.0.0.5:6380"
    assert answering(own, noted="10.0.0.5:6379") == "10.0.0.5:6379"  # As a test's cluster notes itself.


@pytest.mark.parametrize("damaged", ["", "None", "x" * 999 + ":1", ":", "1.2.3.4:99999999"])
def test_a_damaged_note_names_no_ray(
    damaged: str, answering: Callable[..., str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ray_address.require_answer
    answering(noted=damaged)
    monkeypatch.setattr(ray_address, "require_answer", ask)
    assert ray_address.cluster_address() is None


def test_the_address_that_is_named_goes_before(
    answering: Callable[..., str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert answering(raylet(6379, 33, INIT)) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.6:1")
    assert answering(raylet(6379, 33, INIT)) == "10.0.0.6:1"
    with pytest.raises(EnvironmentFault):
        answering(silent=("10.0.0.6:1",))


def test_a_ray_of_another_version_is_named() -> None:
    with pytest.raises(RuntimeError) as raised:
        check_version_info({"ray_version": "1.0.0", "python_version": "3.6.1"}, "here")
    words = ray_session.version_words(str(raised.value))
    assert words is not None
    assert words.startswith("it runs Ray 1.0.0 with Python 3.6.1, and this is Ray 2.")
    assert ray_session.version_words("another error") is None


def test_what_a_cluster_lacks_is_named() -> None:
    nodes = [Node("a", "small", 2.0, 0.0), Node("b", "large", 8.0, 1.0)]
    assert lacking(Compute(workers=5), nodes, Share(2, 0.0)) is None
    lack = lacking(Compute(workers=6), nodes, Share(2, 0.0))
    assert lack is not None
    assert "6 workers with 2 CPUs, 0 GPUs each, there is room for 5" in lack.what
    assert lacking(Compute(workers=2), nodes, Share(1, 1.0)) is not None


class FakePool:
    """Answers the heartbeats of those handles that are heard, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heard: set[str] = set()

    def monotonic(self) -> float:
        return self.now

    def ask(self, handle: str, method: str) -> str:
        return handle

    def wait(self, asked: Iterable[str], timeout_s: float) -> list[str]:
        return [one for one in asked if one in self.heard]

    def worker(self, name: str) -> RemoteWorker:
        pool: Any = self
        return RemoteWorker(pool, name, "node", calls={0: ("run", None)})

    def heartbeats(self, **compute: float) -> Heartbeats:
        pool: Any = self
        return Heartbeats(pool, Compute.model_validate(compute))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    fake = FakePool()
    monkeypatch.setattr(remote, "time", fake)
    return fake


def silent_after(
    fake: FakePool, heartbeats: Heartbeats, workers: list[RemoteWorker], seconds: float
) -> list[RemoteWorker]:
    found: list[RemoteWorker] = []
    for _ in range(int(seconds)):
        fake.now += 1.0
        found = heartbeats.silent(workers)
    return found


def test_a_worker_that_falls_silent_is_found_within_the_batchs_deadline(fake: FakePool) -> None:
    workers = [fake.worker("a"), fake.worker("b"), fake.worker("not started")]
    heartbeats = fake.heartbeats(batch_timeout_s=60.0)
    fake.heard = {"a", "b"}
    assert silent_after(fake, heartbeats, workers, 200) == []
    fake.heard = {"a"}
    assert silent_after(fake, heartbeats, workers, 25) == []
    assert silent_after(fake, heartbeats, workers, 30) == [workers[1]]


def test_a_worker_that_is_heard_again_and_one_that_loads_are_kept(fake: FakePool) -> None:
    workers = [fake.worker("a"), fake.worker("loads")]
    workers[1].calls = {0: ("load", None)}
    heartbeats = fake.heartbeats(batch_timeout_s=60.0, start_timeout_s=500.0)
    fake.heard = {"a", "loads"}
    silent_after(fake, heartbeats, workers, 5)
    fake.heard = set()
    silent_after(fake, heartbeats, workers, 40)
    fake.heard = {"a"}
    assert silent_after(fake, heartbeats, workers, 300) == []


def test_a_driver_that_was_stopped_itself_blames_nobody(fake: FakePool) -> None:
    workers, heartbeats = [fake.worker("a")], fake.heartbeats(batch_timeout_s=60.0)
    fake.heard = {"a"}
    silent_after(fake, heartbeats, workers, 5)
    fake.heard = set()
    fake.now += 3600.0
    assert heartbeats.silent(workers) == []


def started_by(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Return what a command has started that has this name, once there is some."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = []
        for one in psutil.Process(process.pid).children(recursive=True):
            try:
                if any(name in word for word in one.cmdline()[:1]):
                    found.append(one)
            except psutil.Error:
                pass
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no process {name}")


def require_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=10)
    assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.long)])
def test_where_a_process_of_ray_dies_the_run_ends_and_the_same_command_continues(
    name: str, photos: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, out = photos(80), tmp_path / "out"
    spec = job(folder, out, {"fault": "slow"}, compute={"pool": "ray", "workers": 2})
    process = command(tmp_path, spec)
    wait_for_part(out)
    family = psutil.Process(process.pid).children(recursive=True)
    started_by(process, f"/{name}")[0].kill()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert f"Ray broke: its process {name} ended" in said
    assert "Traceback" not in said
    require_gone(family)
    assert not (out / "_job" / "lock").exists()
    assert run(job(folder, out, {"fault": "slow"}), QUIET).exit_status == 0  # In this process: sooner.
    require_every_key_once(out, 80)


@pytest.mark.long
def test_a_stopped_workers_shard_goes_elsewhere(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    compute = {"pool": "ray", "workers": 1, "batch_timeout_s": 8.0}
    process = command(tmp_path, job(folder, out, {"fault": "slow"}, compute=compute))
    wait_for_part(out)
    stopped = started_by(process, "ray::WorkerProcess")
    for one in stopped:
        one.suspend()
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert "a worker has been silent" in said
    require_every_key_once(out, 60)
    require_gone(stopped)


@pytest.mark.long
def test_sigterm_gives_back_what_was_begun(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    spec = job(folder, out, {"fault": "slow"}, compute={"pool": "ray", "workers": 2})
    process = command(tmp_path, spec)
    wait_for_part(out)
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.splitlines()[-1].startswith("Stopped. Finished parts are kept; the same command continues:")
    assert "Stack trace" not in said
    require_gone(family)
    assert not (out / "_job" / "lock").exists()


@pytest.mark.long
def test_a_second_ctrl_c_ends_at_once_and_quietly(photos: Callable[[int], Path], tmp_path: Path) -> None:
    folder, out = photos(60), tmp_path / "out"
    spec = job(folder, out, {"fault": "slow"}, compute={"pool": "ray", "workers": 2})
    process = command(tmp_path, spec)
    wait_for_part(out)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    require_gone(family)
    assert not (out / "_job" / "lock").exists()


STUCK = """
import signal, sys, threading, time
from cnnbatch.terminal import interrupts
interrupts.install()
interrupts.GRACE_S = 0.5
try:
    with interrupts.cleaned_up_by(lambda: print("cleaned up")), interrupts.unwinding("Stopped."):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            if "stuck" in sys.argv:
                threading.Event().wait()  # As a library does that never returns.
except KeyboardInterrupt:
    interrupts.leave(130, "unwound")
except interrupts.Terminated as signalled:
    interrupts.leave(signalled.status, "unwound")
"""


@pytest.mark.parametrize(
    ("number", "stuck", "said"),
    [
        (signal.SIGINT, False, ["ready", "unwound"]),
        (signal.SIGTERM, False, ["ready", "unwound"]),
        (signal.SIGHUP, False, ["ready", "unwound"]),
        (signal.SIGINT, True, ["Stopped.", "cleaned up", "ready"]),
    ],
)
def test_a_signal_unwinds_or_ends_what_does_not_return(number: int, stuck: bool, said: list[str]) -> None:
    options = ["stuck"] if stuck else []
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert sorted((first + rest).splitlines()) == sorted(said)


def test_a_signal_that_was_ignored_before_stays_ignored() -> None:
    code = "import os, signal; from cnnbatch.terminal import interrupts; interrupts.install(); "
    code += "os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    script = ["sh", "-c", f'trap "" HUP; exec {sys.executable} -c "{code}"']
    done = subprocess.run(script, capture_output=True, text=True, cwd=CHECKOUT)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


@pytest.mark.parametrize("moment", ["cnnbatch.cli.app", "typer"])
def test_ctrl_c_while_the_command_line_is_imported(moment: str) -> None:
    """The signal comes at the first line that the module executes."""
    code = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder
class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["cnnbatch", "--version"]
from cnnbatch.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_address_where_nothing_is_ends_a_run_with_status_3(
    photos: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    from cnnbatch.inference.run import run
    from tests.inference.test_run import QUIET

    with pytest.raises(EnvironmentFault, match="no Ray cluster answers there"):
        run(job(photos(2), tmp_path / "out", compute={"pool": "ray"}), QUIET)
    assert not (tmp_path / "out" / "_job" / "lock").exists()


@pytest.mark.slow
def test_a_ray_that_is_started_here_is_what_workers_need_and_gives_them_variables() -> None:
    ray_session.close()
    ray.shutdown()
    before = set(psutil.Process().children())
    ray_session.connect(Compute(), environment={"TOY_VARIABLE": "given"})
    try:
        given = ray.remote(lambda: os.environ.get("TOY_VARIABLE")).remote()
        assert ray.get(given) == "given"
        assert dict(ray_session.environment()) == {"TOY_VARIABLE": "given"}
        started = [process.name() for process in psutil.Process().children() if process not in before]
        assert sorted(started) == ["gcs_server", "raylet"]
    finally:
        family = [process for process in psutil.Process().children(recursive=True) if process not in before]
        assert ray_session.close()
    assert dict(ray_session.environment()) == {}
    require_gone(family)
