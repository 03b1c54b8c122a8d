"""The process that others are forked from: it imports what they need once, forks, and says how they ended.

It has one thread and opens no device, so that a fork is a whole process. Where forking an interpreter is not
safe (macOS), each process is a new interpreter instead. It ends with its driver, and its processes with it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from cnnbatch.cluster.local import child, messages

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FORKS = sys.platform == "linux"
_BEGIN = """
import json, sys
given = json.loads(sys.argv[1])
sys.path[:] = given["path"]
from cnnbatch.cluster.local import server
getattr(server, given["function"])(**given["arguments"])
"""


def command(function: str, **arguments: Any) -> list[str]:
    """Return the command of a new interpreter that calls a function of this module.

    It imports from where this process does, and nothing of what the person's own program is.
    """
    given = {"path": sys.path, "function": function, "arguments": arguments}
    return [sys.executable, "-c", _BEGIN, json.dumps(given)]


def serve(descriptor: int, folder: str, preload: str, forks: bool) -> None:
    """Serve the driver at the other end of the socket ``descriptor`` until it is gone.

    ``folder`` is for what the processes leave, and is removed then. ``preload`` is a function, as
    ``package.module:name``, that imports what they need.
    """
    control = socket.socket(fileno=descriptor)
    try:
        if forks:
            _call(preload)
    except BaseException as error:  # The driver raises it.
        messages.send(control, {"failed": f"{type(error).__name__}: {error}"})
    else:
        _Server(control, preload, forks).serve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Server:
    """The processes by their number in the driver's count, and what is heard of them."""

    def __init__(self, control: socket.socket, preload: str, forks: bool) -> None:
        self._control, self._preload, self._forks = control, preload, forks
        self._running: dict[int, int] = {}

    def serve(self) -> None:
        ended, ending = os.pipe()
        os.set_blocking(ended, False)
        os.set_blocking(ending, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ending, warn_on_full_buffer=False)
        with suppress(OSError):  # The driver is gone.
            while True:
                select.select([self._control.fileno(), ended], [], [])
                with suppress(BlockingIOError):
                    os.read(ended, 4096)
                self._say_ended()
                if select.select([self._control], [], [], 0)[0] and not self._take():
                    break
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        for pid in self._running:
            os.waitpid(pid, 0)

    def _take(self) -> bool:
        """Do what the driver asks next; say whether it is still there."""
        received = messages.receive(self._control)
        if received is None:
            return False
        message, descriptor = received
        if descriptor is not None:
            self._start(message, descriptor)
        else:
            pid = next((pid for pid, number in self._running.items() if number == message["kill"]), None)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        return True

    def _start(self, message: Mapping[str, Any], descriptor: int) -> None:
        number = message["start"]
        try:
            pid = self._fork(message, descriptor) if self._forks else self._spawn(message, descriptor)
        except OSError as error:
            messages.send(self._control, {"refused": number, "why": error.strerror or str(error)})
        else:
            self._running[pid] = number
        finally:
            os.close(descriptor)

    def _fork(self, message: Mapping[str, Any], descriptor: int) -> int:
        server = os.getpid()
        if pid := os.fork():
            return pid
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        _end_with(server)
        os.environ.clear()
        os.environ.update(message["environment"])
        return _run(descriptor, message["log"])

    def _spawn(self, message: Mapping[str, Any], descriptor: int) -> int:
        os.set_inheritable(descriptor, True)
        program = command(
            "run_new",
            descriptor=descriptor,
            server=os.getpid(),
            log=message["log"],
            preload=self._preload,
        )
        return os.posix_spawn(program[0], program, message["environment"])

    def _say_ended(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._running.pop(pid)
            messages.send(self._control, {"ended": number, "code": os.waitstatus_to_exitcode(status)})


def run_new(descriptor: int, server: int, log: str, preload: str) -> NoReturn:
    """Serve calls in an interpreter of its own, started by the process ``server``."""
    _end_with(server)
    _call(preload)
    _run(descriptor, log)


def _run(descriptor: int, log: str) -> NoReturn:
    """Serve calls in this process, and end it."""
    status = 1
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(written, 1)
        os.dup2(written, 2)
        child.serve(descriptor)
        status = 0
    except BaseException:
        traceback.print_exc()  # The driver reads the last line.
    finally:
        os._exit(status)  # Nothing of the server's is to be done at a forked process' end.


def _end_with(parent: int) -> None:
    """Have this process end when its parent does, where the system can see to that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _call(name: str) -> None:
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)()
