"""How the tests are dealt out to several processes (pytest-xdist): by file, and what starts Ray to one.

Two clusters that start at once take each other's time, and a test that kills a node should not have another
cluster beside it; while one process waits for Ray, the others compute.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from cnnbatch.inference.worker.host_memory import memory_left_bytes

ON_RAY = (
    "tests/inference/driver/test_kills.py",
    "tests/inference/driver/test_pool.py",
    "tests/inference/test_detect_workers.py",
    "tests/training/test_train_workers.py",
    "tests/cluster/test_",
)
"""How the names of the files begin that share one process."""


BYTES_EACH = 3 * 2**30
"""Memory that one process of tests may need."""


@pytest.hookimpl(optionalhook=True)
def auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes ``-n logical`` takes: one more than cores, since many slow tests wait."""
    waiting = "not slow" not in config.option.markexpr
    return max(1, min((os.cpu_count() or 1) + waiting, memory_left_bytes() // BYTES_EACH))


def unit(nodeid: str) -> str:
    """Return which piece of work a test belongs to."""
    return "Ray" if nodeid.startswith(ON_RAY) else nodeid.partition("::")[0]


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out whole files, so that what a file's tests share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


@pytest.hookimpl(optionalhook=True)
def scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Return who deals out; the order is that of `longest_first`."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def longest_first(items: list[pytest.Item]) -> None:
    """Begin with Ray, then with files that have slow tests, so that no process ends long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (unit(item.nodeid) != "Ray", item.path not in slow))


def keep_imports() -> None:
    """Have garbage collection pass over what the tests' imports made, which stays to the end."""
    gc.freeze()


def release_imports() -> None:
    """Let the interpreter's end find it again: libraries count what they made."""
    gc.unfreeze()


def share_the_cores() -> None:
    """Let each of several processes compute on its share of the cores; to be called before torch loads."""
    if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
