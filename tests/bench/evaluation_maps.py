"""Maps judged: 10,000 of 480 × 360, their time beside a plain confusion matrix, and their memory.

Ground truth is CamVid's, where it is beside the checkout, else made of blocks; predictions are it, moved and
made coarse. Each contender has a process of its own, on one core; times are the processor's seconds, from
Parquet on. torchmetrics is taken where it is installed (``pip install torchmetrics``; nothing else needs it),
else the same in torch alone.

python -m tests.bench.evaluation_maps
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from cnnbatch.evaluation import Terms, evaluate
from cnnbatch.images import class_map
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.metrics import boundaries, semantic
from cnnbatch.metrics.numbering import of_classes
from cnnbatch.storage import Storage
from cnnbatch.truth import Class
from tests.bench.evaluation import on_one_core
from tests.bench.measuring import SHARED, alone
from tests.segmented import Maps, blocks, write_maps

IMAGES, FEW, PART = 10_000, 1_000, 500
DISTINCT = 200  # maps; the others are the same under other keys
SIZE = (360, 480)
CLASSES = 11
IGNORED = 11
NAMES = tuple(f"class {number}" for number in range(CLASSES))
THIS = "tests.bench.evaluation_maps"

Pair = tuple[NDArray[Any], NDArray[Any]]


def pairs(count: int) -> Iterator[Pair]:
    """Yield predictions and truths."""
    files = sorted((SHARED / "data" / "camvid").glob("*annot/*.png"))
    for place in range(count):
        rng = np.random.default_rng(place)
        if files:
            true = class_map.from_png(files[place % len(files)].read_bytes())
        else:
            true = blocks(place, CLASSES + 1, SIZE, 24)
        moved = np.roll(true, rng.integers(-6, 7, 2), (0, 1))[2::4, 2::4]
        said = np.kron(np.where(moved == IGNORED, 0, moved), np.ones((4, 4), np.uint8)).astype(np.uint8)
        yield said[: true.shape[0], : true.shape[1]], true


def write(folder: Path) -> None:
    """Write an output of ``IMAGES`` maps: parts of ``DISTINCT`` ones, then the same rows under other keys."""
    made = list(pairs(DISTINCT))
    how = Maps(NAMES, [Class(name, number) for number, name in enumerate(NAMES)], (IGNORED,), parts=1)
    write_maps(folder, [said for said, _ in made], [true for _, true in made], how)
    for name in ("predictions", "_job/truth"):
        first = folder / name / "part-00000000.parquet"
        table = pq.read_table(first)
        for part in range(IMAGES // PART):
            rows = table.take(np.arange(PART) % DISTINCT)
            if "key" in rows.schema.names:
                keys: Any = pa.array([f"{part}-{row}.jpg" for row in range(PART)])
                rows = rows.set_column(rows.schema.get_field_index("key"), "key", keys)
            pq.write_table(rows, folder / name / f"part-{part:08}.parquet")


def timed(work: Any) -> tuple[Any, float]:
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


# Each of these runs in a process of its own


def ours(folder: str, images: int) -> dict[str, Any]:
    """Evaluate, with intervals and boundaries."""
    only = {part: np.full(PART, part < images // PART) for part in range(IMAGES // PART)}
    found, seconds = timed(partial(evaluate, folder, Storage(), Terms(only=only)))
    assert found is not None
    return {"cpu_s": seconds, "mIoU": found.metrics["mIoU"].value, "peak_mb": peak_rss_bytes() / 1e6}


def plain(folder: str, images: int) -> dict[str, Any]:
    """Read and decode as little as is needed, and count one confusion matrix: no images, no boundaries."""
    import torch

    torch.set_num_threads(1)
    try:
        from torchmetrics.classification import (  # type: ignore[import-not-found,unused-ignore]
            MulticlassJaccardIndex,
        )

        metric: Any = MulticlassJaccardIndex(CLASSES, ignore_index=IGNORED)
        name = "torchmetrics"
    except ImportError:
        metric, name = _Confusion(), "torch alone"

    def count() -> float:
        for part in range(images // PART):
            columns = [
                pq.read_table(Path(folder, kind, f"part-{part:08}.parquet"), columns=["map"])["map"]
                for kind in ("predictions", "_job/truth")
            ]
            for said, true in zip(*columns, strict=True):
                maps = [
                    torch.from_numpy(class_map.from_png(one.as_py()).astype(np.int64)) for one in (said, true)
                ]
                metric.update(*maps)
        return float(metric.compute())

    found, seconds = timed(count)
    return {"cpu_s": seconds, "mIoU": found, "name": name}


class _Confusion:
    """The mean IoU from a confusion matrix, as torchmetrics has it."""

    def __init__(self) -> None:
        self._counts: Any = 0

    def update(self, said: Any, true: Any) -> None:
        import torch

        kept = true != IGNORED
        self._counts = self._counts + torch.bincount(
            CLASSES * true[kept] + said[kept], minlength=CLASSES**2
        ).reshape(CLASSES, CLASSES)

    def compute(self) -> Any:
        right = self._counts.diagonal()
        return (right / (self._counts.sum(0) + self._counts.sum(1) - right)).mean()


def shares(folder: str, images: int) -> dict[str, Any]:
    """Time what is done with each map by itself."""
    table = pq.read_table(Path(folder, "predictions", "part-00000000.parquet"), columns=["map"])
    files = [one.as_py() for one in table["map"][:DISTINCT]]
    made = list(pairs(DISTINCT))
    known = of_classes([Class(name, place) for place, name in enumerate(NAMES)], NAMES, [IGNORED])
    steps = {
        "decoding two PNG files": lambda: [class_map.from_png(file) for file in files for _ in range(2)],
        "counting pairs of classes": lambda: [semantic.pairs(*pair, known) for pair in made],
        "boundary F1": lambda: [boundaries.boundary_f1(*pair, CLASSES) for pair in made],
        "bands of both": lambda: [boundaries.band(one) for pair in made for one in pair],
    }
    return {name: 1000 * timed(step)[1] / DISTINCT for name, step in steps.items()}


def main() -> None:
    """Print the times, where they go, and the memory."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        few, many = (alone(THIS, "ours", folder, str(count)) for count in (FEW, IMAGES))
        other = alone(THIS, "plain", folder, str(IMAGES))
        steps = alone(THIS, "shares", folder, str(IMAGES))
    if abs(many["mIoU"] - other["mIoU"]) > 1e-6:
        raise RuntimeError(f"the mIoU differ: {many['mIoU']} and {other['mIoU']}")
    console.print(
        f"{IMAGES:,} maps of {SIZE[1]} × {SIZE[0]}, one core: {many['cpu_s']:.1f} s, boundaries, intervals "
        f"and the numbers of each image; {other['name']}'s confusion matrix alone {other['cpu_s']:.1f} s, "
        f"{many['cpu_s'] / other['cpu_s']:.2f} times; mIoU equal to 1e-6"
    )
    console.print(f"peak memory: {many['peak_mb']:,.0f} MB, with {FEW:,} maps {few['peak_mb']:,.0f} MB")
    each = 1000 * many["cpu_s"] / IMAGES
    for name, cost in steps.items():
        if name != "seconds":
            console.print(f"  {name}: {cost:.2f} ms of {each:.2f} ms a map, {cost / each:.0%}")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        on_one_core()
        print(
            json.dumps(
                {one.__name__: one for one in (ours, plain, shares)}[sys.argv[1]](
                    sys.argv[2], int(sys.argv[3])
                )
            )
        )
