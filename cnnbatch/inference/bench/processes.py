"""Calls a function in new processes: what this one did before would change what is measured."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from cnnbatch.errors import EnvironmentFault

T = TypeVar("T")
R = TypeVar("R")


def in_new_processes(function: Callable[[T], R], value: T, processes: int = 1) -> list[R]:
    """Return what ``function(value)`` gives in so many new processes, all at once.

    Raises what it raises; EnvironmentFault where a process ends, or lacks memory or disk.
    """
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        answers = [pool.submit(function, value) for _ in range(processes)]
        try:
            return [answer.result() for answer in answers]
        except BrokenProcessPool:
            raise EnvironmentFault(
                f"one of {processes} processes that measured at once has ended",
                "look at this machine's memory, or give fewer workers (compute.workers)",
            ) from None
        except (MemoryError, OSError) as error:
            raise EnvironmentFault(
                f"{type(error).__name__} in one of {processes} processes that measured at once: {error}",
                "look at this machine's memory, disk and limits",
            ) from None
