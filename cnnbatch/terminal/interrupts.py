"""How the command line ends at Ctrl-C, SIGTERM and SIGHUP, whatever it is doing at that moment.

The first signal unwinds what is under way, so that the lock is released and worker processes end. A second
one, an unwinding that takes too long, or a signal while nothing needs unwinding (imports, the exit of the
interpreter) ends the process at once. A thread sees to that, since Python runs its signal handlers in the
main thread only, which may wait inside a library.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from cnnbatch import terminal

GRACE_S = 12.0
"""How long the unwinding after the first signal may take: less than the 30 s that Kubernetes grants."""
CLEANUP_S = 2.0
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; no Exception, as KeyboardInterrupt is none."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """Return the exit status, as a shell counts it."""
        return 128 + self.number


class _State:
    """What the handler, its thread and the main thread know in common."""

    def __init__(self) -> None:
        self.installed = False
        self.unwinds = False
        self.words = ""
        self.received: int | None = None
        self.cleanups: list[Callable[[], object]] = []
        self.leaving = threading.RLock()
        self.is_leaving = False


_state = _State()


def install() -> None:
    """Take over the signals of this process; only the command line's own process does so."""
    if _state.installed:
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _state.installed = True
    sys.unraisablehook = _unless_interrupted(sys.unraisablehook)
    for handled in _HANDLED:
        if signal.getsignal(handled) is not signal.SIG_IGN:  # As nohup and a shell's `&` ask for.
            signal.signal(handled, _handle)
    threading.Thread(target=_listen, args=(reading,), name="signals", daemon=True).start()


@contextmanager
def unwinding(words: str = "") -> Iterator[None]:
    """While the block lasts, the first signal is raised in it, as KeyboardInterrupt or Terminated.

    ``words`` are said where that does not end the block in time.
    """
    _state.unwinds, _state.words = True, words
    try:
        yield
    finally:
        _state.unwinds, _state.words = False, ""


def is_unwinding() -> bool:
    """Say whether the main thread is still inside `unwinding`."""
    return _state.unwinds


def at_leave(cleanup: Callable[[], object]) -> None:
    """Have ``cleanup`` called where the process ends by `leave`, from now on."""
    _state.cleanups.append(cleanup)


def not_at_leave(cleanup: Callable[[], object]) -> None:
    """Take back what `at_leave` was given."""
    with suppress(ValueError):
        _state.cleanups.remove(cleanup)


@contextmanager
def cleaned_up_by(cleanup: Callable[[], object]) -> Iterator[None]:
    """Have ``cleanup`` called where the process ends by `leave` inside the block."""
    at_leave(cleanup)
    try:
        yield
    finally:
        not_at_leave(cleanup)


def leave(status: int, words: str = "") -> None:
    """End this process at once: say ``words``, do the clean-ups as far as `CLEANUP_S` allows, and exit.

    It returns only to this very function: a signal's handler may call it while it is under way.
    """
    if not _state.leaving.acquire(blocking=False):
        threading.Event().wait()  # Another thread ends the process.
    if _state.is_leaving:
        return
    _state.is_leaving = True
    _try_all([*_state.cleanups])
    _try_all([_flush, *([partial(terminal.say, words, err=True)] if words else [])])
    if os.isatty(2):
        os.write(2, b"\r\x1b[K\x1b[?25h")  # The live line goes, and the cursor that it hid comes back.
    os._exit(status)


def _handle(number: int, _: FrameType | None) -> None:
    if _state.received is not None or not _state.unwinds:
        leave(128 + number)
        return
    _state.received = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def _listen(reading: int) -> None:
    """End the process at a second signal, or where the first has not ended it within `GRACE_S`."""
    first = 0
    while True:
        waited_enough = not select.select([reading], [], [], GRACE_S if first else None)[0]
        if waited_enough:
            leave(128 + first, _state.words)
            return
        number = os.read(reading, 1)[0]
        if number not in _HANDLED:
            continue
        if first or not _state.unwinds:
            leave(128 + (first or number))
            return
        first = number


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _try_all(acts: Sequence[Callable[[], object]]) -> None:
    """Call all of ``acts`` side by side, and wait for them as long as `CLEANUP_S`."""
    threads = [threading.Thread(target=_quietly, args=(one,), daemon=True) for one in acts]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + CLEANUP_S
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))


def _quietly(act: Callable[[], object]) -> None:
    with suppress(Exception):
        act()


def _unless_interrupted(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return ``hook`` without a say on signals: raised in a destructor, they can't unwind anything."""

    def chosen(about: Any) -> None:
        if not isinstance(about.exc_value, KeyboardInterrupt | Terminated):
            hook(about)

    return chosen
