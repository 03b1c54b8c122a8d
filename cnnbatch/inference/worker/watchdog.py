"""Ends a process that hangs on an image, so that whoever started it can ask which image it was.

A thread here does it, and can say why; where a library holds the interpreter's lock for ever it
can't, and `faulthandler`'s timer, which needs no lock, does it a little later.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cnnbatch.inference.worker.journal import Journal
from cnnbatch.models import passes
from cnnbatch.terminal import say

EXIT_STATUS = 3
_TRIAL_WORDS = (
    "the model gave nothing for a picture of its own within {seconds:g} s, so this process ends\n"
    "  what to do: look at the model; where it needs that long, give compute.batch_timeout_s more seconds"
)


class Watchdog:
    """Ends this process, with status 3, once the same work goes on for ``timeout_s``.

    That is an image in the ``journal``, or what the model is tried on before its first image; what can be
    stopped there is, first. What hung is then in the file ``path``: the stack of every thread. ``words`` are
    said before, where it was an image.
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
        seen: tuple[int, ...] = ()
        since, stopped = time.monotonic(), False
        while not self._stop.wait(min(1.0, self._timeout_s / 4)):
            trials = passes.under_way()
            now = (self._journal.progress, *(trial.number for trial in trials))
            least_s = 0.0 if self._journal.busy() else max((trial.least_s for trial in trials), default=0.0)
            limit_s = max(self._timeout_s, least_s)
            if now != seen or not (trials or self._journal.busy()):
                seen, since, stopped = now, time.monotonic(), False
                faulthandler.dump_traceback_later(1.5 * limit_s + 1, exit=True, file=self._file)
            elif time.monotonic() - since > limit_s * (1.25 if stopped else 1):
                if stopped or not self._stopped(trials):
                    self._end(self._words if self._journal.busy() else _TRIAL_WORDS.format(seconds=limit_s))
                stopped = True

    def _stopped(self, trials: Sequence[passes.TrialPass]) -> bool:
        """Ask what the model is tried on to stop; say whether that can be, and no image is under way."""
        stops = [trial.stop for trial in trials if trial.stop]
        if not stops or self._journal.busy():
            return False
        for stop in stops:
            stop()
        return True

    def _end(self, words: str) -> None:
        faulthandler.dump_traceback(self._file)
        if words:
            say(words, err=True)
        os._exit(EXIT_STATUS)


def has_fired(path: Path) -> bool:
    """Say whether the watchdog that wrote to ``path`` ended its process."""
    return path.exists() and path.stat().st_size > 0
