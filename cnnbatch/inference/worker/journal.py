"""Notes in a memory-mapped file what a worker is at, so that its death says which images did it.

A message can be lost with the process that sends it; a mapped page can't, short of the host.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

LONGEST_BATCH = 16_384
DECODERS = 256
_HEAD = 2 + LONGEST_BATCH  # images in the batch, its shard, their positions


class Journal:
    """What one worker process decodes and predicts at this moment; safe to use from many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes = np.memmap(path, np.int64, "w+", shape=(_HEAD + 3 * DECODERS,))
        self._thread = threading.local()
        self._threads = 0
        self._lock = threading.Lock()
        self.progress = 0

    @contextmanager
    def decoding(self, shard: int, position: int) -> Iterator[None]:
        """Note that this thread decodes image ``position`` of ``shard`` while the block lasts."""
        slot = self._slot()
        self._notes[slot + 1], self._notes[slot + 2] = shard, position
        self._notes[slot] = 1
        yield
        self._notes[slot] = 0  # Not in a finally: an exception that ends the process leaves the note.
        self.progress += 1

    @contextmanager
    def predicting(self, shard: int, positions: Sequence[int]) -> Iterator[None]:
        """Note that the images at ``positions`` of ``shard`` are predicted while the block lasts."""
        self._notes[1] = shard
        self._notes[2 : 2 + len(positions)] = positions
        self._notes[0] = len(positions)
        yield
        self._notes[0] = 0
        self.progress += 1

    def busy(self) -> bool:
        """Say whether anything is being decoded or predicted."""
        return bool(self._notes[0]) or bool(self._notes[_HEAD::3].any())

    def clear(self) -> None:
        """Forget what is noted, where an exception was handled."""
        self._notes[0] = 0
        self._notes[_HEAD::3] = 0

    def _slot(self) -> int:
        slot: int | None = getattr(self._thread, "slot", None)
        if slot is None:
            with self._lock:
                slot = self._thread.slot = _HEAD + 3 * (self._threads % DECODERS)
                self._threads += 1
        return slot


def suspects(path: Path) -> dict[int, list[int]]:
    """Return the positions, by shard, that a worker was at when its process ended."""
    notes = np.fromfile(path, np.int64)
    found: dict[int, set[int]] = {}
    if notes[0]:
        found.setdefault(int(notes[1]), set()).update(notes[2 : 2 + notes[0]].tolist())
    for active, shard, position in notes[_HEAD:].reshape(-1, 3).tolist():
        if active:
            found.setdefault(shard, set()).add(position)
    return {shard: sorted(positions) for shard, positions in found.items()}
