"""COCO's evaluation: its speed on one core against pycocotools, and its memory at 2,000,000 truths.

Every detection is made of a truth, which it moves and resizes. Sides are multiples of 1/64 pixel, so that
sums of floats are exact and all get the same numbers. Each contender has a process of its own, on one core;
times are the processor's seconds. pycocotools and faster-coco-eval (C++) begin with results that are loaded
and indexed, cnnbatch with Arrow tables.

python -m tests.bench.evaluation
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.metrics import coco
from cnnbatch.metrics.intervals import REPLICATES
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.truth import BOX, OBJECTS
from tests.bench.measuring import alone

IMAGES, TRUTHS, DETECTIONS = 5000, 36_000, 100
MANY_TRUTHS, FEW_DETECTIONS = 2_000_000, 10
PIECE = 1000  # Images a partial.
NAMES = [f"class {number:02}" for number in range(80)]
BOXES = IOU_TYPES["boxes"]
THIS = "tests.bench.evaluation"


@dataclass(frozen=True)
class Made:
    """Objects of some images, ordered by image, (n,) each; the boxes are (n, 4): x, y, width, height."""

    image: NDArray[Any]
    label: NDArray[Any]
    boxes: NDArray[Any]
    score: NDArray[Any] | None = None
    crowd: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.image)


def make(images: int, truths: int, detections: int, seed: int) -> tuple[Made, Made]:
    """Return the truths, at least one an image, and ``detections`` an image, most of the same class."""
    rng = np.random.default_rng(seed)
    image = np.sort(np.concatenate([np.arange(images), rng.integers(0, images, truths - images)]))
    corners, sides = rng.uniform(0, 400, (truths, 2)), np.exp(rng.uniform(2, 5.5, (truths, 2)))
    boxes = np.ceil(np.concatenate([corners, sides], axis=1) * 64) / 64
    true = Made(image, rng.integers(0, len(NAMES), truths), boxes, crowd=rng.random(truths) < 0.02)
    ends = np.searchsorted(image, np.arange(images + 1))
    source = rng.integers(ends[:-1, None], ends[1:, None], (images, detections)).ravel()
    spread = rng.exponential(0.15, (len(source), 1))
    near = np.ceil(boxes[source] * np.exp(rng.normal(0, 1, (len(source), 4)) * spread) * 64) / 64
    label = np.where(
        rng.random(len(source)) < 0.9, true.label[source], rng.integers(0, len(NAMES), len(source))
    )
    score = rng.random(len(source), np.float32)
    return true, Made(np.repeat(np.arange(images), detections), label, near, score)


def tables(true: Made, found: Made, images: int, first: int = 0) -> tuple[pa.Table, pa.Table]:
    """Return predictions and truth as evaluation reads them."""
    ids = pa.array([str(number) for number in range(first, first + images)])
    return (
        pa.table({"key": ids, "objects": column(found, images)}),
        pa.table({"image_id": ids, "objects": column(true, images)}),
    )


def column(made: Made, images: int) -> pa.Array[Any]:
    x, y, width, height = made.boxes.T
    sides = [pa.array(side) for side in (x, y, x + width, y + height)]
    known: dict[str, Any] = {
        "label": pa.array(NAMES).take(pa.array(made.label)),
        "box": pa.StructArray.from_arrays(sides, fields=list(BOX)),
        "score": made.score,
        "crowd": made.crowd,
    }
    fields: list[Any] = list(OBJECTS.value_type)
    columns = [
        pa.nulls(len(made), field.type) if known.get(field.name) is None else pa.array(known[field.name])
        for field in fields
    ]
    offsets = pa.array(np.searchsorted(made.image, np.arange(images + 1)), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields))


def as_coco(made: Made) -> list[dict[str, Any]]:
    """Return the same as COCO's files have it."""
    rows = zip(made.image.tolist(), made.label.tolist(), made.boxes.tolist(), strict=True)
    items = [{"image_id": image, "category_id": label, "bbox": box} for image, label, box in rows]
    for number, one in enumerate(items):
        if made.score is not None:
            one["score"] = float(made.score[number])
        if made.crowd is not None:
            box = one["bbox"]
            one |= {"id": number + 1, "iscrowd": int(made.crowd[number]), "area": box[2] * box[3]}
    return items


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    answer = work()
    return answer, time.process_time() - started


# Each of these runs in a process of its own


def reference(known: Any, evaluation: Any) -> dict[str, Any]:
    """Evaluate by classes as pycocotools has them."""
    true, found = make(IMAGES, TRUTHS, DETECTIONS, seed=0)
    known.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(IMAGES)],
        "annotations": as_coco(true),
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES)],
    }
    with redirect_stdout(None):
        known.createIndex()
        made = evaluation(known, known.loadRes(as_coco(found)), "bbox")
        _, evaluate = timed(made.evaluate)
        _, accumulate = timed(made.accumulate)
        made.summarize()
    return {"cpu_s": evaluate + accumulate, "numbers": list(made.stats[:12])}


def pycocotools() -> dict[str, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return reference(COCO(), COCOeval)


def faster_coco_eval() -> dict[str, Any]:
    from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-untyped]

    return reference(COCO(), COCOeval_faster)


def ours() -> dict[str, Any]:
    """Evaluate without and with intervals, and then from Parquet."""
    made = tables(*make(IMAGES, TRUTHS, DETECTIONS, seed=0), IMAGES)

    def evaluate(predictions: pa.Table, truth: pa.Table) -> coco.MergedCoco:
        starts = range(0, IMAGES, PIECE)
        pieces = (
            coco.partial(BOXES, predictions[at : at + PIECE], truth[at : at + PIECE], at) for at in starts
        )
        return coco.merge(BOXES, pieces)

    merged, matching = timed(lambda: evaluate(*made))
    found, ranking = timed(lambda: coco.result(merged, intervals=False))
    _, intervals = timed(lambda: coco.result(merged))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("predictions.parquet", "truth.parquet")]
        for path, table in zip(paths, made, strict=True):
            pq.write_table(table, path)
        _, reading = timed(lambda: [pq.read_table(path) for path in paths])
    return {
        "cpu_s": matching + ranking,
        "numbers": [one.value for one in found.metrics.values()],
        "intervals_s": intervals - ranking,
        "replicates": REPLICATES,
        "reading_s": reading,
    }


def large() -> dict[str, Any]:
    """Evaluate ``MANY_TRUTHS`` with intervals, a partial at a time; return what it took."""
    truths = PIECE * TRUTHS // IMAGES

    def pieces() -> Iterator[coco.CocoPartial]:
        for number in range(MANY_TRUTHS // truths + 1):
            made = make(PIECE, truths, FEW_DETECTIONS, seed=number)
            yield coco.partial(BOXES, *tables(*made, PIECE, number * PIECE), number * PIECE)

    peaks = [peak_rss_bytes()]
    merged = coco.merge(BOXES, pieces())
    peaks.append(peak_rss_bytes())
    _, ranking = timed(lambda: coco.result(merged))
    peaks.append(peak_rss_bytes())
    return {
        "truths": merged.truths.rows,
        "detections": merged.detections.rows,
        "ranking_s": ranking,
        "peak_mb": [peak / 1e6 for peak in peaks],
    }


def on_one_core() -> None:
    pa.set_cpu_count(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> None:
    """Print the comparison and the memory."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    console = Console()
    theirs, fast, own = (alone(THIS, name) for name in ("pycocotools", "faster_coco_eval", "ours"))
    for other in (theirs, fast):
        if not np.allclose(own["numbers"], other["numbers"], rtol=0, atol=1e-9):
            raise RuntimeError(f"the numbers differ:\n{own['numbers']}\n{other['numbers']}")
    slower, slow = theirs["cpu_s"] / own["cpu_s"], fast["cpu_s"] / own["cpu_s"]
    console.print(
        f"COCO's numbers, {IMAGES:,} images, {TRUTHS:,} truths, {DETECTIONS} detections an image, one core: "
        f"{own['cpu_s']:.2f} s; pycocotools {theirs['cpu_s']:.1f} s, {slower:.0f} times as long; "
        f"faster-coco-eval {fast['cpu_s']:.1f} s, {slow:.1f} times; all are equal to 1e-9"
    )
    console.print(
        f"intervals of {own['replicates']} replicates: {own['intervals_s']:.1f} s more; "
        f"reading the tables from Parquet: {own['reading_s']:.2f} s more"
    )
    many = alone(THIS, "large")
    start, matched, peak = many["peak_mb"]
    console.print(
        f"{many['truths']:,} truths, {many['detections']:,} detections: peak {peak:,.0f} MB, "
        f"{matched:,.0f} when all were matched, {start:,.0f} at the start; {many['seconds']:.0f} s with "
        f"making them, {many['ranking_s']:.0f} s of them for ranking with intervals"
    )


if __name__ == "__main__":
    parts = {one.__name__: one for one in (pycocotools, faster_coco_eval, ours)}
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "large":
        print(json.dumps(large()))
    else:
        on_one_core()
        print(json.dumps(parts[sys.argv[1]]()))
