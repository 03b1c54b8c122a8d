"""Which nodes to leave out, and when to stop: a fault of the environment is never an image's."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

NODE_STRIKES = 3
BACKOFFS_S = (1.0, 4.0, 12.0)


class Strikes:
    """The recent attempts on every node, failed by the environment or not."""

    def __init__(self) -> None:
        self._in_a_row: dict[str, int] = {}
        self._recent: deque[bool] = deque(maxlen=2 * NODE_STRIKES)
        self._backoffs = 0
        self.left_out: set[str] = set()

    def succeeded(self, node: str) -> None:
        """Count an attempt on ``node`` that gave its result."""
        self._in_a_row[node] = 0
        self._recent.append(True)
        self._backoffs = 0

    def failed(self, node: str, alive: Collection[str]) -> bool:
        """Count an attempt on ``node`` that its environment ended; return whether to leave it out now.

        A node is left out once it failed `NODE_STRIKES` times in a row while another one works.
        """
        self._in_a_row[node] = self._in_a_row.get(node, 0) + 1
        self._recent.append(False)
        others = [other for other in alive if other != node and other not in self.left_out]
        works_elsewhere = any(self._in_a_row.get(other) == 0 for other in others)
        if self._in_a_row[node] >= NODE_STRIKES and works_elsewhere and node not in self.left_out:
            self.left_out.add(node)
            return True
        return False

    def pause_s(self) -> float | None:
        """Return how long to wait before the next attempt, 0 for not at all; None: give up."""
        if any(self._recent) or len(self._recent) < NODE_STRIKES:
            return 0.0
        if self._backoffs == len(BACKOFFS_S):
            return None
        self._backoffs += 1
        return BACKOFFS_S[self._backoffs - 1]
