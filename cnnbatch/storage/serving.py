"""Which buckets and hosts have served this process, and whether they still do.

Whether a refusal is one object's own is not decided by what was served before it, since credentials expire
and storages go down in the middle of a run: an object that was read before is asked for again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

_MOST_PLACES = 1000  # of a list with millions of hosts the latest
_ASKED = 3


@dataclass
class _Place:
    """One bucket or host: an object that it gave, and when a question began that it answered, or did not."""

    uri: str = ""
    served: float = 0.0
    refused: float = 0.0
    asking: threading.Lock = field(default_factory=threading.Lock)


class Serving:
    """The places that have served; ``readable`` says whether an object can be read, asked anew."""

    def __init__(self, readable: Callable[[str], bool]) -> None:
        self._readable = readable
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, name: str, uri: str) -> None:
        """Note that a place has given an object."""
        with self._lock:
            self._places.setdefault(name, _Place()).uri = uri
            self._places.move_to_end(name)
            if len(self._places) > _MOST_PLACES:
                self._places.popitem(last=False)

    def elsewhere(self, name: str) -> bool | None:
        """Say whether one of the places beside ``name`` that served last still does; None: there are none."""
        with self._lock:
            others = [other for other in reversed(self._places) if other != name][:_ASKED]
        return any(self.still(other) for other in others) if others else None

    def still(self, name: str) -> bool | None:
        """Say whether a place gives what it gave before, by a request that begins now or later.

        None where it has given nothing so far. Threads that ask together share one request.
        """
        began = time.monotonic()
        with self._lock:
            place = self._places.get(name)
        if place is None:
            return None
        with place.asking:
            if max(place.served, place.refused) < began:
                asked, readable = time.monotonic(), self._readable(place.uri)
                place.served, place.refused = (asked, 0.0) if readable else (0.0, asked)
            return place.served >= began
