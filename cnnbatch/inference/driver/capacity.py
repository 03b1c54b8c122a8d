"""How many workers a run may have, and where: as many as the nodes alive hold, looked at while it lasts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from cnnbatch.cluster.nodes import bounds, lacking, placements, require_room, share, too_few
from cnnbatch.config.compute import Compute
from cnnbatch.inference.driver.pool import WorkerPool

LOOK_AGAIN_S = 5.0


class Capacity:
    """The nodes of a run, and how many workers each of them holds.

    ``shards`` says how many there are at most, where that is known: more workers would find no work.
    ``note`` is told what is waited for.
    """

    def __init__(
        self,
        pool: WorkerPool,
        compute: Compute,
        shards: Callable[[], int | None],
        note: Callable[[str], None],
    ) -> None:
        self._pool, self._compute = pool, compute
        self._least, self._most = bounds(compute)
        self._shards = shards
        self.nodes = pool.nodes()
        self.share = share(compute, self.nodes)
        self._room: dict[str, int] = {}
        self._enough_at = self._looked = 0.0
        self._started_enough = False
        require_room(compute, self.nodes, self.share)
        if lack := lacking(compute, self.nodes, self.share):
            if not pool.may_grow():
                raise lack
            note(f"waiting up to {compute.start_timeout_s:g} s for nodes: {lack.what}")

    def begin(self) -> None:
        """Count from now on the time without enough workers."""
        self._enough_at = time.monotonic()

    def look_at_once(self) -> None:
        """Have the next `look` look, however short ago the last one was: a worker is gone."""
        self._looked = 0.0

    def look(self, left_out: Collection[str]) -> bool:
        """Take the nodes that are alive now but for those ``left_out``; say whether it was time to look."""
        now = time.monotonic()
        if self._looked and now - self._looked < LOOK_AGAIN_S:
            return False
        self._looked = now
        self.nodes = [node for node in self._pool.nodes() if node.id not in left_out]
        for node in self.nodes:
            self._room.setdefault(node.id, self.share.fits(node))
        return True

    def wanted(self, held: Sequence[str], first: Collection[str]) -> list[str]:
        """Return the nodes on which to start a worker each; ``""`` for one that an autoscaler is to bring.

        ``held`` are the nodes of the workers that there are, ``first`` those that have to have one.
        """
        wanted = [node for node in first if node not in held]
        wanted += placements(self.nodes, Counter(held), self._room)
        useful = self._shards() if self._compute.workers == "auto" else None
        if useful is not None:
            wanted = wanted[: max(0, useful - len(held))]
        if self._most is not None:
            wanted = wanted[: self._most - len(held)]
            may_come = self._pool.may_grow() and not self._started_enough
            if may_come and len(held) + len(wanted) < self._most:
                wanted += [""] * (self._most - len(held) - len(wanted))  # An autoscaler sees these.
        return wanted

    def bound(self, node: str, workers: int) -> bool:
        """Have a node hold at most so many workers; say whether it held more."""
        if workers >= self._room.get(node, 0):
            return False
        self._room[node] = workers
        return True

    def host_of(self, node: str) -> str:
        """Return the name of a node's host."""
        return next((alive.host for alive in self.nodes if alive.id == node), node)

    def is_alive(self, node: str) -> bool:
        """Say whether a node is alive at this moment."""
        return any(alive.id == node for alive in self._pool.nodes())

    def require_enough(self, ready: int) -> None:
        """Stop where there have been too few workers for too long: at first the least number, later one."""
        self._started_enough = self._started_enough or ready >= self._least
        now, least = time.monotonic(), 1 if self._started_enough else self._least
        if ready >= least:
            self._enough_at = now
        elif now - self._enough_at > self._compute.start_timeout_s:
            raise too_few(self._compute, self.nodes, self.share, least, ready)
