"""Objects in processes of this machine: what they answer, how their end is said, and that none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cnnbatch.cluster.local.processes import LocalCall, LocalProcess, LocalProcesses, ProcessEnded, wait
from cnnbatch.errors import UserError
from tests.places import CHECKOUT

NOTHING = "os:getpid"
"""A preload that imports nothing."""
PATIENCE_S = 30.0


class Echo:
    """Answers, raises, sleeps, or ends its process."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        if values == ("refuses",):
            raise RuntimeError("it refuses to be built")

    def say(self, *values: Any) -> Any:
        return (*self.values, *values)

    def keep(self, *values: Any) -> None:
        self.values = values

    def pid(self) -> int:
        return os.getpid()

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def raise_it(self) -> None:
        raise LookupError("nothing there")

    def sleep(self) -> None:
        time.sleep(3600)

    def beat(self) -> None:
        pass

    def end(self, status: int) -> None:
        os.write(2, b"the last words\n")
        os._exit(status)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def unportable(self) -> Any:
        return threading.Lock()


@pytest.fixture(scope="module", params=[True, False], ids=["forked", "spawned"])
def server(request: pytest.FixtureRequest) -> Iterator[LocalProcesses]:
    server = LocalProcesses(NOTHING, forks=request.param)
    yield server
    server.close()


@pytest.fixture
def start(server: LocalProcesses) -> Iterator[Callable[..., LocalProcess]]:
    started: list[LocalProcess] = []

    def begin(*values: Any, **around: str) -> LocalProcess:
        started.append(server.start(Echo, *values, environment=around))
        return started[-1]

    yield begin
    server.end(started)


def answered(call: LocalCall) -> Any:
    assert wait([call], PATIENCE_S, call.process.server.changed) == [call]
    return call.process.answer(call.number)


def test_an_object_answers_from_a_process_of_its_own(start: Callable[..., LocalProcess]) -> None:
    one, other = start("one"), start("other")
    assert answered(one.ask("say", 1, [2])) == ("one", 1, [2])
    assert answered(other.ask("say")) == ("other",)
    assert len({os.getpid(), answered(one.ask("pid")), answered(other.ask("pid"))}) == 3


def test_what_an_object_raises_is_raised_with_the_place(start: Callable[..., LocalProcess]) -> None:
    process = start()
    with pytest.raises(LookupError, match="nothing there") as raised:
        answered(process.ask("raise_it"))
    assert "in raise_it" in str(raised.value.__cause__)
    with pytest.raises(TypeError, match="lock"):
        answered(process.ask("unportable"))
    assert answered(process.ask("say", "on")) == ("on",)


class InTurn(Echo):
    """Takes one call after the other."""

    THREADS = 1


def test_what_is_told_is_done_in_its_turn_and_not_answered(server: LocalProcesses) -> None:
    process = server.start(InTurn)
    process.tell("keep", 3)
    assert answered(process.ask("say")) == (3,)
    assert not process._answers
    server.end([process])


def test_environments_are_of_the_start(
    start: Callable[..., LocalProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNBATCH_TEST_NEW", "now")
    process = start(CUDA_VISIBLE_DEVICES="3")
    assert answered(process.ask("variable", "CUDA_VISIBLE_DEVICES")) == "3"
    assert answered(process.ask("variable", "CNNBATCH_TEST_NEW")) == "now"


def test_a_heartbeat_is_answered_while_all_threads_are_at_work(start: Callable[..., LocalProcess]) -> None:
    process = start()
    for _ in range(8):
        process.ask("sleep")
    assert answered(process.ask("beat")) is None


@pytest.mark.parametrize(
    ("values", "method", "words"),
    [
        ((), ("end", 7), "it ended with status 7; it wrote last: the last words"),
        ((), ("kill",), "it was ended by SIGKILL"),
        (("refuses",), ("say",), "it wrote last: RuntimeError: it refuses to be built"),
    ],
)
def test_how_a_process_ended_is_said(
    start: Callable[..., LocalProcess], values: tuple[Any, ...], method: tuple[Any, ...], words: str
) -> None:
    process = start(*values)
    with pytest.raises(ProcessEnded, match=words):
        answered(process.ask(*method))


def test_a_process_is_killed_though_it_is_stopped_and_much_was_sent(
    start: Callable[..., LocalProcess],
) -> None:
    process = start()
    os.kill(answered(process.ask("pid")), signal.SIGSTOP)
    call = process.ask("say", b"x" * 2**24)  # More than a socket holds.
    process.kill()
    with pytest.raises(ProcessEnded, match="SIGKILL"):
        answered(call)


def test_what_cannot_be_sent_is_the_persons_mistake(start: Callable[..., LocalProcess]) -> None:
    with pytest.raises(UserError, match="can't be sent to another process.*lock"):
        start(threading.Lock())


@pytest.mark.slow
def test_where_the_server_ends_its_processes_do(tmp_path: Path) -> None:
    server = LocalProcesses(NOTHING)
    process = server.start(Echo)
    pid = answered(process.ask("pid"))
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    with pytest.raises(ProcessEnded):
        answered(process.ask("sleep"))
    assert not server.is_running
    with pytest.raises(ProcessEnded, match="the process that starts the others was ended by SIGKILL"):
        answered(server.start(Echo).ask("say"))
    server.close()
    wait_for_end([pid])


def test_what_cannot_be_imported_is_said() -> None:
    server = LocalProcesses("no_such_module:at_all")
    with pytest.raises(ProcessEnded, match="ModuleNotFoundError.*no_such_module"):
        answered(server.start(Echo).ask("say"))
    server.close()


def test_a_process_that_cannot_be_forked_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LocalProcesses(f"{__name__}:limit_processes")
    with pytest.raises(ProcessEnded, match="it could not be started: Resource temporarily unavailable"):
        answered(server.start(Echo).ask("say"))
    server.close()


def limit_processes() -> None:
    """Have every fork fail, as where memory or numbers of processes are used up."""

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    os.fork = refuse


SCRIPT = """
import os, sys, time
from cnnbatch.cluster.local.processes import LocalProcesses, wait

class Mine:
    def pid(self):
        return os.getpid()

server = LocalProcesses("os:getpid")
call = server.start(Mine).ask("pid")
wait([call], 30, server.changed)
print(call.process.answer(call.number), flush=True)
if len(sys.argv) > 1:
    time.sleep(60)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return what runs a program that has no ``if __name__ == "__main__"``, and whose class has no module."""

    def run(*arguments: str) -> subprocess.Popen[str]:
        path = tmp_path / "mine.py"
        path.write_text(SCRIPT)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)}
        command = [sys.executable, str(path), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return run


def wait_for_end(pids: list[int]) -> None:
    gone = time.monotonic() + PATIENCE_S
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < gone, "a process is left"
        time.sleep(0.02)


def test_a_script_of_any_kind_has_its_classes_sent(
    script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = script()
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    wait_for_end([int(said)])
    assert not [*tmp_path.glob("cnnbatch-workers-*")]


@pytest.mark.slow
def test_nothing_is_left_of_a_driver_that_is_killed(
    script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = script("waits")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    below = [pid, *(child.pid for child in psutil.Process(process.pid).children())]
    process.kill()
    process.communicate()
    wait_for_end(below)
    assert not [*tmp_path.glob("cnnbatch-workers-*")]
