"""What a shard costs and gives, counted while its windows pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

import pyarrow as pa

from cnnbatch.inference.messages import STAGES
from cnnbatch.inference.worker.readahead import Item
from cnnbatch.output.part import failures
from cnnbatch.types import FORGOTTEN, Receipt, Shard


class ShardTally:
    """Counts rows, failures and seconds of one shard; ``clock`` tells those of `wall`."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self.rows = 0
        self.failed: Counter[str] = Counter()
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def wall(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes by the clock to ``stage``."""
        started = self._clock()
        try:
            yield
        finally:
            self.seconds[stage] += self._clock() - started

    def add(self, window: Iterable[Item], rows_s: float) -> None:
        """Count a window's images, and ``rows_s`` seconds for making their rows."""
        self.seconds["rows"] += rows_s
        for item in window:
            self.rows += 1
            if item.outcome.failure and item.outcome.failure.code != FORGOTTEN:
                self.failed[item.outcome.failure.code] += 1
            for stage, seconds in item.seconds.items():
                self.seconds[stage] += seconds

    def receipt(self, shard: Shard, replaced: pa.Table | None) -> Receipt:
        """Return the shard's receipt; ``replaced`` is the whole part where only some rows were made anew."""
        rows, failed = self.rows, dict(self.failed)
        if replaced is not None:
            rows, failed = replaced.num_rows, failures(replaced["error"])
        return Receipt(shard.index, rows, self.rows, failed, self.seconds, dict(self.failed))
