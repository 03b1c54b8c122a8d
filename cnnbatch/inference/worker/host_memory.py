"""How much memory this process holds, and how much its host has left."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    return _status_bytes("VmHWM") or _usage_bytes()


def rss_bytes() -> int:
    """Return the memory that this process holds; where the system does not tell, the most it has held."""
    return _status_bytes("VmRSS") or _usage_bytes()


def _status_bytes(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def _usage_bytes() -> int:
    """Return ru_maxrss, which on Linux starts at what the process that forked this one held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_left_bytes() -> int:
    """Return how much memory this host, or the cgroup this process is in, still has."""
    left = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        left = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).exists() and (most := Path(limit).read_text().strip()) != "max":
            left = min(left, int(most) - int(Path(used).read_text()))
    return left
