"""The turns of shards on a worker's device: one has it from its first batch to its last."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class ShardWithdrawn(Exception):
    """A shard is to be given back, and none of its images was predicted."""


class Turns:
    """Which shard has the device; one that waits for it can be withdrawn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: Turn | None = None
        self._waiting: set[int] = set()
        self._withdrawn: set[int] = set()

    @contextmanager
    def waiting(self, shard: int) -> Iterator[None]:
        """Have a shard that is run in the block wait for its turn, so that it can be withdrawn."""
        with self._changed:
            self._waiting.add(shard)
        try:
            yield
        finally:
            with self._changed:
                self._waiting.discard(shard)
                self._withdrawn.discard(shard)

    def withdraw(self, shard: int) -> bool:
        """Have a shard give up its turn; say whether it was waiting for it."""
        with self._changed:
            if shard not in self._waiting:
                return False
            self._waiting.remove(shard)
            self._withdrawn.add(shard)
            self._changed.notify_all()
        return True

    def take(self, turn: Turn) -> None:
        """Wait for the device and take it; raises ShardWithdrawn."""
        with self._changed:
            self._changed.wait_for(lambda: turn.shard in self._withdrawn or self._holder is None)
            if turn.shard in self._withdrawn:
                raise ShardWithdrawn
            self._waiting.discard(turn.shard)
            self._holder = turn

    def leave(self, turn: Turn) -> None:
        """Let another shard have the device."""
        with self._changed:
            if self._holder is turn:
                self._holder = None
                self._changed.notify_all()


class Turn:
    """One shard's turn, which it takes with its first window and has until the block ends."""

    def __init__(self, turns: Turns, shard: int) -> None:
        self.shard = shard
        self._turns = turns
        self._taken = False

    def take(self) -> None:
        """Wait for the device, unless it is this shard's already; raises ShardWithdrawn."""
        if not self._taken:
            self._turns.take(self)
            self._taken = True

    def taken_by(self, windows: Iterable[T]) -> Iterator[T]:
        """Yield windows, the first once this shard has the device."""
        for window in windows:
            self.take()
            yield window

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        self._turns.leave(self)
