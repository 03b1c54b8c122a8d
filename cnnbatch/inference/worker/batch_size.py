"""How many inputs go through the network at once where the device's memory may not hold a whole batch.

Halving at once costs a few failed passes, growing back late some speed; both cost time, never an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

PATIENCE = 64


class BatchSize:
    """At most ``limit`` inputs: halved where they don't fit, doubled after ``patience`` batches that did.

    A size that fails again soon after it was grown to doubles the patience; one that lasts restores it.
    """

    def __init__(self, limit: int, patience: int = PATIENCE) -> None:
        self.size = self._limit = limit
        self._patience = self._first_patience = patience
        self._largest = 0
        self._good = 0
        self._grown = False

    def has_fitted(self) -> bool:
        """Say whether any inputs went through so far."""
        return self._largest > 0

    def each(self, count: int, attempt: Callable[[int, int], str | None]) -> Iterator[tuple[int, str]]:
        """Attempt ``count`` inputs in their order; yield the place of each that fits not even alone, and why.

        ``attempt`` takes where some inputs start and stop, and returns why they don't fit, or None.
        """
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            reason = attempt(start, stop)
            if reason is not None and stop - start > 1:
                self._halve(stop - start)
                continue
            if reason is None:
                self._fitted(stop - start)
            else:
                self._blame_input()
                yield start, reason
            start = stop

    def _halve(self, count: int) -> None:
        if self._grown and self._good < self._patience:
            self._patience *= 2
        self.size = (count + 1) // 2
        self._good, self._grown = 0, False

    def _fitted(self, count: int) -> None:
        self._largest = max(self._largest, count)
        if count < self.size:  # A short batch says nothing of a full one.
            return
        self._good += 1
        if self._good >= self._patience:
            self._grow()

    def _grow(self) -> None:
        if self._grown:
            self._patience = self._first_patience
        self._good, self._grown = 0, self.size < self._limit
        self.size = min(2 * self.size, self._limit)

    def _blame_input(self) -> None:
        """Go back to what has fitted before: the size was halved for the sake of one input."""
        self.size = max(self.size, self._largest)
        self._good, self._grown = 0, False
