"""Ends a process that hangs on an image, so that whoever started it can ask which image it was.

A thread here does it, and can say why; where a library holds the interpreter's lock for ever it
can't, and `faulthandler`'s timer, which needs no lock, does it a little later.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path

from cnnbatch.journal import Journal
from cnnbatch.terminal import say

EXIT_STATUS = 3


class Watchdog:
    """Ends this process, with status 3, once ``journal`` shows the same work for ``timeout_s``.

    What hung is then in the file ``path``: the stack of every thread. ``words`` are said before.
    """

    def __init__(self, journal: Journal, timeout_s: float, path: Path, words: str = "") -> None:
        self._journal = journal
        self._timeout_s = timeout_s
        self._words = words
        self._file = path.open("w")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._stop.wait(min(1.0, self._timeout_s / 4)):
            if self._journal.progress != seen or not self._journal.busy():
                seen, since = self._journal.progress, time.monotonic()
                faulthandler.dump_traceback_later(1.5 * self._timeout_s + 1, exit=True, file=self._file)
            elif time.monotonic() - since > self._timeout_s:
                self._end()

    def _end(self) -> None:
        faulthandler.dump_traceback(self._file)
        if self._words:
            say(self._words, err=True)
        os._exit(EXIT_STATUS)


def has_fired(path: Path) -> bool:
    """Say whether the watchdog that wrote to ``path`` ended its process."""
    return path.exists() and path.stat().st_size > 0
