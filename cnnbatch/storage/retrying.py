"""How often and how soon a request is tried again: one rule for every storage."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from cnnbatch.storage.contract import StorageOptions

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 15.0
LAST_BEGINS_S = 300.0


def pause_s(failed: int) -> float:
    """Return how long to wait after ``failed`` attempts in a row: twice as long each time, less up to half.

    The random part keeps many workers that failed together from coming back together.
    """
    return random.uniform(0.5, 1) * min(FIRST_PAUSE_S * 2.0 ** (failed - 1), LONGEST_PAUSE_S)


def attempts(options: StorageOptions) -> Iterator[int]:
    """Yield the number of each attempt that ``options`` allow, from 0, after the pause before it.

    None begins once `LAST_BEGINS_S` have passed, or ``timeout_s`` where that is longer: where each attempt
    hangs until it is given up, a few of them tell as much as many.
    """
    last = time.monotonic() + max(LAST_BEGINS_S, options.timeout_s)
    for attempt in range(options.retries + 1):
        if attempt:
            time.sleep(pause_s(attempt))
        if attempt and time.monotonic() > last:
            return
        yield attempt
