"""Objects in processes of this machine, and calls of their methods: the driver's side.

A thread reads what a process answers and another one writes what it is asked, so that a process that is
stopped stops nobody else. The fork server says how a process ended.
"""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cnnbatch.cluster.local import messages, server
from cnnbatch.errors import UserError
from cnnbatch.terminal import interrupts

SAID_S = 2.0
"""How long to wait for the fork server to say how a process ended."""
LAST_WORDS = 200


class ProcessEnded(Exception):
    """A process is gone; ``str`` of it says in a sentence how."""


@dataclass(frozen=True, slots=True)
class LocalCall:
    """A call of a method that is under way."""

    process: LocalProcess
    number: int


class LocalProcesses:
    """Starts processes of this machine by a fork server of its own, which ends with this process.

    ``preload`` is a function, as ``package.module:name``, that imports what the processes need; it runs in
    the server while this goes on. ``environment`` is added to this process' own. Several may share
    ``changed``, which is notified of every answer and every end. Raises OSError where no process can be
    started.
    """

    def __init__(
        self,
        preload: str,
        environment: Mapping[str, str] | None = None,
        changed: threading.Condition | None = None,
        forks: bool = server.FORKS,
    ) -> None:
        self.changed = changed or threading.Condition()
        self.fault: str | None = None
        self._running: dict[int, LocalProcess] = {}
        self._numbers = itertools.count()
        self._folder = tempfile.mkdtemp(prefix="cnnbatch-workers-")
        self._control, other = socket.socketpair()
        program = server.command(
            "serve", descriptor=other.fileno(), folder=self._folder, preload=preload, forks=forks
        )
        try:
            self._server = subprocess.Popen(
                program,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is the driver's to hear.
            )
        except OSError:
            self._control.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            other.close()
        interrupts.at_leave(self._kill)
        threading.Thread(target=self._listen, name="fork-server", daemon=True).start()

    @property
    def is_running(self) -> bool:
        """Whether processes can be started."""
        return self.fault is None

    def start(self, kind: type, *values: Any, environment: Mapping[str, str] | None = None) -> LocalProcess:
        """Start a process that builds ``kind(*values)``; it comes up while this goes on.

        Its environment is this process' own of this moment, with ``environment`` added, and a folder for
        temporary files. Raises as `dumps`.
        """
        first, number = dumps((kind, values)), next(self._numbers)
        process = LocalProcess(self, number, f"{self._folder}/{number}")
        with suppress(OSError):  # A folder that is gone is said by what goes without.
            Path(process.folder).mkdir()
        mine, other = socket.socketpair()
        with self.changed:
            self._running[number] = process
        around = {**os.environ, **(environment or {}), "TMPDIR": process.folder}
        with other, suppress(OSError):  # Then the thread that listens says that the server is gone.
            message = {"start": number, "environment": around, "log": process.log}
            messages.send(self._control, message, other.fileno())
        process.begin(mine, first)
        return process

    def end(self, processes: Iterable[LocalProcess]) -> None:
        """End processes at once, and remove what they left."""
        ended = [*processes]
        for process in ended:
            process.kill()
        with self.changed:
            self.changed.wait_for(
                lambda: not self.is_running or not any(one.number in self._running for one in ended), SAID_S
            )
        for process in ended:
            shutil.rmtree(process.folder, ignore_errors=True)

    def kill(self, number: int) -> None:
        """End a process at once, by its number."""
        with suppress(OSError):
            messages.send(self._control, {"kill": number})

    def how_it_ended(self, process: LocalProcess) -> str:
        """Say how a process ended that answers no more."""
        with self.changed:
            self.changed.wait_for(lambda: process.how is not None or not self.is_running, SAID_S)
        return process.how or self.fault or "it closed its connection"

    def close(self) -> None:
        """End the server and all processes."""
        interrupts.not_at_leave(self._kill)
        self._kill()
        self._server.wait()
        self._control.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self) -> None:
        """End all processes at once, which are of one session."""
        if self._server.poll() is None:
            with suppress(OSError):
                os.killpg(self._server.pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self) -> None:
        """Take what the server says until it is gone."""
        fault = ""
        with suppress(OSError):
            while (received := messages.receive(self._control)) is not None:
                message, _ = received
                fault = message.get("failed", fault)
                self._take(message)
        with self.changed:
            self.fault = fault or f"the process that starts the others {_words(self._server.wait())}"
            self.changed.notify_all()

    def _take(self, message: Mapping[str, Any]) -> None:
        with self.changed:
            if "refused" in message:
                self._running.pop(message["refused"]).how = f"it could not be started: {message['why']}"
            elif "ended" in message:
                process = self._running.pop(message["ended"])
                process.how = f"it {_words(message['code'])}{_last_words(process.log)}"
            self.changed.notify_all()


class LocalProcess:
    """One process with its object; answers are kept until they are taken."""

    def __init__(self, server: LocalProcesses, number: int, folder: str) -> None:
        self.number, self.folder, self.log = number, folder, f"{folder}/log"
        self.how: str | None = None
        self.is_gone = False
        self.server = server
        self._answers: dict[int, tuple[str | None, Any]] = {}
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._count = 0

    def begin(self, own: socket.socket, first: bytes) -> None:
        """Talk to the process by a socket; ``first`` is its class and arguments."""
        self._requests.put(first)
        connection = Connection(own.detach())
        writing = threading.Thread(target=self._write, args=(connection,), name="requests", daemon=True)
        writing.start()
        threading.Thread(target=self._read, args=(connection, writing), name="answers", daemon=True).start()

    def ask(self, method: str, *values: Any) -> LocalCall:
        """Call a method; the answer is `answer`'s to give. Raises as `dumps`."""
        self._count += 1
        self._requests.put(dumps((self._count, method, values)))
        return LocalCall(self, self._count)

    def tell(self, method: str, *values: Any) -> None:
        """Call a method of whose answer nothing is heard. Raises as `dumps`."""
        self._requests.put(dumps((None, method, values)))

    def is_answered(self, number: int) -> bool:
        """Say whether a call is answered, or will never be."""
        return number in self._answers or self.is_gone

    def answer(self, number: int) -> Any:
        """Return what a call gave, or raise what it raised; raises ProcessEnded."""
        self.require_answer(number)
        place, value = self._answers.pop(number)
        if place is not None:
            raise value from RuntimeError(f"raised in a worker process:\n{place}")
        return value

    def require_answer(self, number: int) -> None:
        """Raise ProcessEnded where a call will never be answered."""
        if number not in self._answers:
            raise ProcessEnded(self.server.how_it_ended(self))

    def kill(self) -> None:
        """End the process at once."""
        self.server.kill(self.number)

    def _read(self, connection: Connection, writing: threading.Thread) -> None:
        changed = self.server.changed
        with suppress(EOFError, OSError):
            while True:
                number, place, value = pickle.loads(connection.recv_bytes())  # Our own process wrote it.
                with changed:
                    self._answers[number] = (place, value)
                    changed.notify_all()
        with changed:
            self.is_gone = True
            changed.notify_all()
        self._requests.put(None)
        writing.join()
        connection.close()

    def _write(self, connection: Connection) -> None:
        with suppress(OSError):
            while (request := self._requests.get()) is not None:
                connection.send_bytes(request)
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)


def wait(calls: Iterable[LocalCall], timeout_s: float, changed: threading.Condition) -> list[LocalCall]:
    """Return the calls that are answered, or never will be; wait for the first at most ``timeout_s``.

    ``changed`` is what their processes share.
    """
    asked = [*calls]

    def answered() -> list[LocalCall]:
        return [call for call in asked if call.process.is_answered(call.number)]

    with changed:
        return changed.wait_for(answered, timeout_s) or []


def dumps(value: object) -> bytes:
    """Return a value as it is sent, what the person's own program defines with its code.

    Raises UserError where something of it can't be sent.
    """
    import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:  # Whatever an object says when it is asked for its state.
        raise UserError(
            f"the job can't be sent to another process: {type(error).__name__}: {error}\n"
            "  what to do: define what it is made of in a module of its own, or give compute.pool=inline"
        ) from None
    return data


def _words(code: int) -> str:
    """Say how a process ended, from its exit code: negative, the signal that ended it."""
    if code >= 0:
        return f"ended with status {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _last_words(log: str) -> str:
    """Return the last line that a process wrote, in a clause."""
    with suppress(OSError):
        lines = Path(log).read_text(errors="replace").strip().splitlines()
        return f"; it wrote last: {lines[-1][-LAST_WORDS:]}" if lines else ""
    return ""
