"""A map over processes of this machine: order, errors, deaths, and that no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cnnbatch.cluster import process_map
from cnnbatch.cluster.process_map import AHEAD, ProcessMap
from cnnbatch.errors import EnvironmentFault, UserError
from tests.places import CHECKOUT


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def below() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def of_a_map(before: set[psutil.Process]) -> set[int]:
    """Return the processes of a map: those whose parent, which they were forked from, has come since, too."""
    new = below() - before
    return {one.pid for one in new if one.ppid() in {other.pid for other in new}}


def test_results_come_in_order_from_processes_that_stay(tmp_path: Path) -> None:
    before = below()
    two = ProcessMap(2)
    offset = 10

    def after(seconds: float) -> tuple[float, int, bool]:
        time.sleep(seconds)
        return seconds + offset, os.getpid(), "ray" in sys.modules or "torch" in sys.modules

    found = list(two(after, [0.3, 0.2, 0.1, 0.0] * 3))
    assert [seconds for seconds, _, _ in found] == [10.3, 10.2, 10.1, 10.0] * 3
    assert {heavy for _, _, heavy in found} == {False}
    pids = {pid for _, pid, _ in found}
    assert len(pids) == 2
    assert set(two(lambda _: os.getpid(), range(9))) <= pids
    assert of_a_map(before) == pids
    del two
    assert below() == before


def test_no_more_processes_than_cores_or_values() -> None:
    before = below()
    many = ProcessMap(10_000)
    assert list(many(abs, [])) == []
    assert below() == before
    assert list(many(abs, [-1])) == [1]
    assert len(of_a_map(before)) == 1
    assert list(many(abs, range(-20, 0))) == [*range(20, 0, -1)]
    assert len(of_a_map(before)) == 2


def test_what_is_ahead_of_a_slow_result_is_bounded() -> None:
    taken = 0

    def values() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken = number + 1
            yield number

    def slowly(number: int) -> int:
        time.sleep(0.0 if number else 0.5)
        return number

    results = ProcessMap(2)(slowly, values())
    assert next(results) == 0
    assert taken <= 2 * AHEAD
    assert list(results) == [*range(1, 50)]


class Odd(Exception):
    """Can be packed, but not unpacked."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def refuse(value: Any) -> None:
    if value == "user":
        raise UserError("expected a number that is not negative")
    if value == "odd":
        raise Odd(1, 2)
    if value == "exit":
        os._exit(7)
    if value == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_of_the_function_is_raised_as_it_is() -> None:
    before = below()
    with pytest.raises(UserError, match=r"^expected a number that is not negative$") as raised:
        list(ProcessMap(2)(refuse, ["", "user", ""]))
    assert "in refuse" in str(raised.value.__cause__)
    with pytest.raises(RuntimeError, match="1 and 2"):
        list(ProcessMap(2)(refuse, ["odd"]))
    with pytest.raises(TypeError, match="pickle"):
        list(ProcessMap(2)(lambda _: threading.Lock(), [1]))
    assert below() == before


@pytest.mark.parametrize(
    ("end", "how"), [("exit", "it ended with status 7"), ("kill", "it was ended by SIGKILL")]
)
def test_a_process_that_ends_is_a_fault_of_this_machine(end: str, how: str) -> None:
    before = below()
    with pytest.raises(EnvironmentFault, match=rf"a worker process is gone: {how}\n.*memory to spare"):
        list(ProcessMap(2)(refuse, ["", "", end]))
    assert below() == before


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_map, "NOTHING", f"{__name__}:no_room")
    with pytest.raises(EnvironmentFault, match=r"a worker process is gone: SystemExit: no room"):
        list(ProcessMap(2)(abs, range(3)))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EnvironmentFault, match="could not be started: No such file"):
        list(ProcessMap(2)(abs, range(3)))


def no_room() -> None:
    raise SystemExit("no room")


def test_large_values_and_results_pass() -> None:
    values = [bytes([number]) * 2**22 for number in range(6)]
    assert list(ProcessMap(2)(lambda value: value * 2, values)) == [value * 2 for value in values]


def test_a_map_that_is_left_leaves_no_process() -> None:
    before = below()
    results: Any = ProcessMap(2)(abs, range(100))
    assert next(results) == 0
    results.close()
    assert below() == before


SCRIPT = """
import sys, time
from cnnbatch.cluster.process_map import ProcessMap
def slowly(number):  # Of __main__, which has no guard.
    time.sleep(60 if number else 0)
    return number
for number in ProcessMap(2)(slowly, range(9)):
    print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_script_that_is_ended(number: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    variables = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3 or os.cpu_count() == 1  # With the one that they are forked from.
    process.send_signal(number)
    process.communicate(timeout=30)
    assert not psutil.wait_procs(family, timeout=10)[1]
