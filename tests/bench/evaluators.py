"""Two evaluation workers against one, both up: 20,000 images, 7 truths and 100 detections each.

Five pairs, taken in turns, and the median of their ratios: the machine's noise meets both alike.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cnnbatch import truth
from cnnbatch.cluster.parallel import on_ray
from cnnbatch.config.compute import Compute
from cnnbatch.evaluation import evaluate
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.storage import Storage
from cnnbatch.truth import BOX, Class
from cnnbatch.types import Map
from tests.outputs import write_job

IMAGES, PARTS, CLASSES, TRUTHS, DETECTIONS, PAIRS = 20_000, 40, 80, 7, 100, 5
NAMES = [f"class {number}" for number in range(CLASSES)]
FOUND = pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", BOX)])


def main() -> None:
    """Print the ratio, and the images a second of each."""
    with tempfile.TemporaryDirectory() as folder:
        write_job(Path(folder))
        for part in range(PARTS):
            _write(Path(folder), part, IMAGES // PARTS)
        maps = [on_ray(Compute(), workers) for workers in (1, 2)]
        for apply in maps:
            _seconds(folder, apply)  # Once unmeasured: Ray starts, and its processes import.
        pairs = [tuple(_seconds(folder, apply) for apply in maps) for _ in range(PAIRS)]
    one, two = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(first / second for first, second in pairs)
    print(f"evaluation of {IMAGES:,} images, {IMAGES * DETECTIONS:,} detections, intervals included:")
    print(f"  one worker {IMAGES / one:,.0f} images/s, two {IMAGES / two:,.0f}: {ratio:.2f} times")


def _seconds(folder: str, apply: Map) -> float:
    started = time.perf_counter()
    evaluate(folder, Storage(), apply=apply)
    return time.perf_counter() - started


def _write(folder: Path, part: int, images: int) -> None:
    """Write a part of predictions and its truth; most detections are truths that were moved a little."""
    random = np.random.default_rng(part)
    corners = random.uniform(0, 500, (images, TRUTHS, 2))
    boxes = np.concatenate([corners, corners + np.exp(random.uniform(2, 5, (images, TRUTHS, 2)))], axis=2)
    labels = random.integers(0, CLASSES, (images, TRUTHS))
    chosen = random.integers(0, TRUTHS, (images, DETECTIONS))
    rows = np.arange(images)[:, None]
    moved = boxes[rows, chosen] + random.normal(0, 12, (images, DETECTIONS, 4))
    moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
    wrong = random.random((images, DETECTIONS)) < 0.3
    guessed = np.where(wrong, random.integers(0, CLASSES, wrong.shape), labels[rows, chosen])
    keys = [f"{part}-{number}.jpg" for number in range(images)]
    found = _lists(FOUND, guessed, moved, pa.array(random.random(guessed.size).astype(np.float32)))
    objects = _lists(truth.OBJECTS.value_type, labels, boxes, None)
    schema = pa.schema([*ENGINE_COLUMNS, ("objects", pa.list_(FOUND))])
    columns: dict[str, Any] = {"key": keys, "uri": keys, "objects": found, "vanished": [False] * images}
    columns |= {"width": [640] * images, "height": [640] * images}
    of_truth = truth.with_classes(truth.OBJECTS_SCHEMA, [Class(name, name) for name in NAMES])
    _put(folder / "predictions", part, columns, schema, images)
    _put(folder / "_job" / "truth", part, {"image_id": keys, "objects": objects}, of_truth, images)


def _lists(kind: Any, labels: NDArray[Any], boxes: NDArray[Any], scores: Any) -> pa.ListArray[Any]:
    sides = [pa.array(side) for side in boxes.reshape(-1, 4).T.copy()]
    known: dict[str, Any] = {
        "label": pa.array(NAMES).take(pa.array(labels.ravel())),
        "score": scores,
        "box": pa.StructArray.from_arrays(sides, fields=list(BOX)),
    }
    fields = list(kind)
    columns = [known.get(one.name) for one in fields]
    filled = [
        pa.nulls(labels.size, one.type) if c is None else c for c, one in zip(columns, fields, strict=True)
    ]
    ends: Any = pa.array(np.arange(len(labels) + 1) * labels.shape[1], pa.int32())
    return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(filled, fields=fields))


def _put(folder: Path, part: int, columns: dict[str, Any], schema: pa.Schema, rows: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [columns.get(one.name, pa.nulls(rows, one.type)) for one in schema]
    pq.write_table(pa.table(arrays, schema=schema), folder / f"part-{part:08}.parquet")


if __name__ == "__main__":
    main()
