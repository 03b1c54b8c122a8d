"""A whole run as a user times it, from the start of the command to its exit, against what a user would write.

Each contender is timed on the same photographs, one after the other, in rounds; compare ratios, not seconds.
The first run knows nothing of this machine, the second remembers what the first has found.

    python -m tests.bench.whole [IMAGES [ROUNDS]]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench import engine
from tests.bench.measuring import ROOT, alone, photographs

MODEL = "mobilenet_v2"
ROUNDS = 3
COUNTS = (1_500, 10_000)
LOOK_S = 0.25
LOOP, RAY_DATA = "DataLoader(2)", "Ray Data's recipe"


class Watch(threading.Thread):
    """Looks at a command's processes: their memory, shared pages counted once, and its first part."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        super().__init__(daemon=True)
        self._process, self._out, self._began = process, out, time.monotonic()
        self.peak_bytes = 0
        self.first_part_s: float | None = None

    def run(self) -> None:
        while self._process.poll() is None:
            if self.first_part_s is None and any(self._out.glob("predictions/part-*")):
                self.first_part_s = time.monotonic() - self._began
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
            time.sleep(LOOK_S)

    def _held_bytes(self) -> int:
        """Return the proportional set size of the command and all below it; resident where it isn't told."""
        held = 0
        with suppress(psutil.Error):
            above = psutil.Process(self._process.pid)
            for one in (above, *above.children(recursive=True)):
                with suppress(psutil.Error):
                    memory = one.memory_full_info()
                    held += getattr(memory, "pss", memory.rss)
        return held


def cnnbatch(photos: str, folder: Path, pool: str, cache: str, checkout: Path = ROOT) -> dict[str, Any]:
    """Run the command line and return its seconds, and what its parts and processes say."""
    out = folder / "cnnbatch"
    shutil.rmtree(out, ignore_errors=True)
    job = folder / "job.yaml"
    task = {"name": "classify", "model": MODEL, "weights": engine.weights(MODEL)}
    compute = {} if pool == "auto" else {"pool": pool}
    job.write_text(json.dumps({"task": task, "input": photos, "output": str(out), "compute": compute}))
    environment = {**os.environ, "RAY_ADDRESS": "local", "CNNBATCH_CACHE": cache}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnbatch", "run", str(job)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": str(checkout)},
        cwd=checkout,
    )
    watch = Watch(process, out)
    watch.start()
    status = process.wait()
    seconds = time.monotonic() - started
    if status:
        raise RuntimeError(f"{job.read_text()} ended with status {status}")
    watch.join()
    return {"seconds": seconds, "first": watch.first_part_s, "peak": watch.peak_bytes, **_shares(out)}


def _shares(out: Path) -> dict[str, Any]:
    from cnnbatch.output.folder import Output
    from cnnbatch.storage import Storage

    output, rows = Output(str(out), Storage()), Counter[int]()
    footers = [*output.footers(output.finished())]
    for footer in footers:
        rows[footer["worker"]] += footer["receipt"]["rows"]
    least = min(rows.values()) / sum(rows.values())
    return {"least": least, "way": f"{footers[0]['backend']} {footers[0]['precision']}"}


def measure(count: int, rounds: int, console: Console) -> None:
    """Time every contender ``rounds`` times on ``count`` photographs, and print the medians' ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder, photos = Path(name), Path(name) / "photos"
        photos.mkdir()
        for number, path in enumerate(islice(photographs(), count)):
            shutil.copy(path, photos / f"{number:06}.jpg")
        found: dict[str, list[dict[str, Any]]] = {}
        for number in range(rounds):
            for contender, run in _contenders(str(photos), folder, f"{folder}/cache-{number}").items():
                found.setdefault(contender, []).append(run())
    _show(found, count, console)


def _contenders(photos: str, folder: Path, cache: str) -> Mapping[str, Callable[[], dict[str, Any]]]:
    def rival(name: str) -> dict[str, Any]:
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        return alone(engine.THIS, name, MODEL, photos, str(out))

    return {
        LOOP: lambda: rival("dataloader"),
        "cnnbatch, first run": lambda: cnnbatch(photos, folder, "auto", cache),
        "cnnbatch, second run": lambda: cnnbatch(photos, folder, "auto", cache),
        RAY_DATA: lambda: rival("ray_data"),
        "cnnbatch, pool=ray, first run": lambda: cnnbatch(photos, folder, "ray", cache + "-ray"),
        "cnnbatch, pool=ray, second run": lambda: cnnbatch(photos, folder, "ray", cache + "-ray"),
    }


def _show(found: Mapping[str, list[dict[str, Any]]], count: int, console: Console) -> None:
    seconds = {name: median(one["seconds"] for one in runs) for name, runs in found.items()}
    table = Table(
        "contender",
        "seconds",
        "times the loop",
        "times Ray Data's",
        "first part, s",
        "least worker",
        "peak, MB",
        "way",
        title=f"{MODEL}, {count:,} photographs, from start to exit, medians of {len(found[LOOP])}",
    )
    for name, runs in found.items():
        table.add_row(
            name,
            f"{seconds[name]:.1f} ({min(one['seconds'] for one in runs):.1f} to "
            f"{max(one['seconds'] for one in runs):.1f})",
            f"{seconds[LOOP] / seconds[name]:.2f}",
            f"{seconds[RAY_DATA] / seconds[name]:.2f}",
            *(_ours(runs) if "first" in runs[0] else []),
        )
    console.print(table)


def _ours(runs: list[dict[str, Any]]) -> list[str]:
    """Return the first part's seconds, the least worker's share, the peak memory, and the way taken."""
    return [
        f"{median(one['first'] or 0.0 for one in runs):.1f}",
        f"{median(one['least'] for one in runs):.0%}",
        f"{median(one['peak'] for one in runs) / 2**20:.0f}",
        runs[0]["way"],
    ]


def main() -> None:
    """Measure each number of photographs."""
    for count in COUNTS:
        measure(count, ROUNDS if count == min(COUNTS) else 1, Console())


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    if given:
        measure(given[0], given[1] if len(given) > 1 else 1, Console())
    else:
        main()
