"""What a run says while it lasts: one live line on a terminal, one line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cnnbatch import terminal
from cnnbatch.humanize import duration
from cnnbatch.types import Receipt

PLAIN_EVERY_S = 10.0
TICK_S = 1.0
RECENT_S = 30.0
EXAMPLES = 3
"""Failed images that a run names at its end."""


class Screen:
    """Counts receipts and shows done/total, images a second, time left and failures.

    ``of_this_run``: what was skipped, since it was done before, counts neither as done nor in the total.
    ``progress``: called with each line of a run that is quiet, since it is one of several.
    """

    def __init__(
        self, quiet: bool, of_this_run: bool = False, progress: Callable[[str], object] | None = None
    ) -> None:
        self._of_this_run, self._told = of_this_run, progress
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self.total: int | None = None
        self.done = 0
        self.skipped = 0
        self.failed: dict[str, int] = {}
        self.failed_in: list[int] = []
        self._started = time.monotonic()
        self._recent: list[tuple[float, int]] = []
        self._said = self._started
        self._live = Live("", console=self.console, transient=True, refresh_per_second=4)
        self._doing = ""
        self._doing_since = self._started
        self._ended = threading.Event()

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start()
        threading.Thread(target=self._tick, name="screen", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.console.is_terminal:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Return how long the run has lasted."""
        return time.monotonic() - self._started

    def note(self, text: str) -> None:
        """Say what a person should know at once."""
        self.console.print(Text(terminal.lines(text)))

    def say(self, text: str) -> None:
        """Say a line of the result, on the standard output."""
        if not self.console.quiet:
            terminal.say(text)

    def doing(self, what: str) -> None:
        """Show what is done before images can be counted, with its seconds, until something else is shown.

        Without a terminal the first is said at once.
        """
        if not self._doing:
            self._said = time.monotonic() - PLAIN_EVERY_S
        self._doing, self._doing_since = what, time.monotonic()
        self.show()

    def count(self, receipt: Receipt, total: int | None) -> None:
        """Take one finished shard; ``total`` is the number of images planned, once it is known."""
        self.total = total
        self.done += receipt.predicted
        if total is not None:  # Rows made again were skipped before.
            self.skipped = min(self.skipped, total - self.done)
        for code, number in receipt.failed_now.items():
            self.failed[code] = self.failed.get(code, 0) + number
        if receipt.failed_now and len(self.failed_in) < EXAMPLES:
            self.failed_in.append(receipt.shard)
        self._recent.append((time.monotonic(), self.done))
        self.show()

    def show(self) -> None:
        """Show the line as it stands."""
        self._put(self.line())

    def progress(self, line: str) -> None:
        """Show a line that the next one replaces; without a terminal one every ten seconds."""
        self._doing = ""
        self._put(line)

    def _put(self, line: str) -> None:
        if self._told is not None:
            self._told(line)
        elif self.console.is_terminal:
            self._live.update(Text(terminal.line(line)))
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            self.console.print(Text(terminal.line(line)))

    def stage(self, name: str, total: int, unit: str = "images") -> Callable[[int], None]:
        """Show a stage after predicting; return what it calls with each number of images that are done.

        ``unit`` is what is counted where that is not images.
        """
        started, done = time.monotonic(), 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            rate = done / max(time.monotonic() - started, 1e-3)
            left = duration(max(total - done, 0) / max(rate, 1e-9), whole=True)
            self.progress(f"{name} {done:,}/{total:,} {unit} · {rate:,.1f} {unit}/s · {left} left")

        return advance

    def line(self) -> str:
        """Return the line: what is done first, then done/total, images a second, time left, failures."""
        if self._doing and not self._recent:
            return f"{self._doing} · {duration(time.monotonic() - self._doing_since, whole=True)}"
        rate = self._rate()
        before = -self.skipped if self._of_this_run else 0
        total = "?" if self.total is None else f"{self.total + before:,}"
        parts = [f"predict {self.skipped + self.done + before:,}/{total} images"]
        if rate:
            parts.append(f"{rate:,.1f} images/s")
        if rate and self.total is not None:
            left = (self.total - self.skipped - self.done) / rate
            parts.append(f"{duration(left, whole=True)} left")
        if self.failed:
            parts.append(f"{sum(self.failed.values()):,} failed")
        return " · ".join(parts)

    def _tick(self) -> None:
        """Keep the seconds of what is done first going."""
        while not self._ended.wait(TICK_S):
            if self._doing and not self._recent:
                self.show()

    def _rate(self) -> float:
        """Return images a second over the last half minute that had receipts."""
        now = time.monotonic()
        while len(self._recent) > 2 and now - self._recent[0][0] > RECENT_S:
            self._recent.pop(0)
        if not self._recent:
            return 0.0
        since, before = self._recent[0] if len(self._recent) > 1 else (self._started, 0)
        return (self.done - before) / max(now - since, 1e-3)
