"""How often a client may ask: a bucket of tokens each, which fills steadily."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_CLIENTS = 10_000
"""Clients that are remembered; the one that asked longest ago is forgotten first."""
BURST_S = 3.0
"""So many seconds' requests may come at once."""


class RateLimit:
    """Lets each client ask ``per_second`` times a second; 0 lets all ask always."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_second, clock
        self._most = max(1.0, BURST_S * per_second)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, cost: float = 1.0) -> float:
        """Take ``cost`` requests of a client: return 0, or after how many seconds it may ask that again."""
        if not self._rate:
            return 0.0
        client, now = _client(address), self._clock()
        left, before = self._clients.pop(client, (self._most, now))
        left = min(self._most, left + (now - before) * self._rate)
        lacks = max(0.0, cost - left)
        self._clients[client] = (left if lacks else left - cost), now
        if len(self._clients) > MOST_CLIENTS:
            self._clients.popitem(last=False)
        return lacks / self._rate


def _client(address: str) -> str:
    """Return whom an address belongs to: of IPv6 a network of 64 bits, which one client has whole."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
