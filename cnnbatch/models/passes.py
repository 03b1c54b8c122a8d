"""Notes what a model does before its first image, so that the watchdog sees it hang there, too.

A network is tried on pictures of its own while it is loaded, and nothing says that this ever ends. The notes
are the process's own, since models know nothing of who loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

_numbers = count()


@dataclass(eq=False, slots=True)
class TrialPass:
    """One thing that a model does: ``stop``, where there is a way, makes it end early.

    ``least_s`` is what it may take however short the job's own limit is.
    """

    stop: Callable[[], None] | None
    least_s: float
    number: int = field(default_factory=_numbers.__next__)


_under_way: list[TrialPass] = []


def under_way() -> tuple[TrialPass, ...]:
    """Return what goes on at this moment, the oldest first."""
    return tuple(_under_way)


@contextmanager
def trying(stop: Callable[[], None] | None = None, least_s: float = 5.0) -> Iterator[None]:
    """Note, while the block lasts, that a model is tried; `TrialPass` says what the arguments are."""
    trial = TrialPass(stop, least_s)
    _under_way.append(trial)
    try:
        yield
    finally:
        _under_way.remove(trial)
