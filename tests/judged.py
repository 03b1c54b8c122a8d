"""Made detections with their truth: as COCO's own values for pycocotools, and as an output folder."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnnbatch import truth
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.truth import BOX, Class
from cnnbatch.truth.classes import ModelClasses
from tests.outputs import Part, write_job, write_part

FOUND = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", BOX)]))
DETECTED = pa.schema([*ENGINE_COLUMNS, ("camera", pa.string()), ("objects", FOUND)])
JOB = """\
kind: map
task: {name: detect, model: yolov3_tiny, weights: DEFAULT, aliases: %s}
input: {url: %%s, format: auto, keep: [camera]}
output: {url: %%s}
"""
SIDE = 640

Row = dict[str, Any]


def dataset(images: int, classes: int, seed: int = 0) -> Row:
    """Return a COCO data set of made boxes, crowds among them; the image ids are not in order."""
    random = np.random.default_rng(seed)
    ids = (random.permutation(images) + 1).tolist()
    annotations: list[Row] = []
    for image in ids:
        for _ in range(int(random.poisson(6))):
            x, y, width, height = np.round(
                [*random.uniform(0, 400, 2), *np.exp(random.uniform(2, 5.5, 2))], 2
            )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(random.integers(1, classes + 1)),
                    "bbox": [float(x), float(y), float(width), float(height)],
                    "area": float(width * height * random.uniform(0.4, 1)),
                    "iscrowd": int(random.random() < 0.06),
                }
            )
    return {
        "info": {},
        "images": [{"id": id, "file_name": f"{id}.jpg", "width": SIDE, "height": SIDE} for id in ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)],
    }


def detections(data: Mapping[str, Any], seed: int = 1) -> list[Row]:
    """Return COCO results that perturb the truths of ``data``, with equal scores and false positives."""
    random = np.random.default_rng(seed)
    found = []
    for one in data["annotations"]:
        for _ in range(int(random.poisson(1.3))):
            box = np.round(np.array(one["bbox"]) * np.exp(random.normal(0, 0.1, 4)), 2)
            wrong = random.random() < 0.2
            label = int(random.integers(1, len(data["categories"]) + 1)) if wrong else one["category_id"]
            score = float(np.float32(np.round(random.beta(2, 2) * (0.7 if wrong else 1), 2)))
            found.append(
                {"image_id": one["image_id"], "category_id": label, "bbox": box.tolist(), "score": score}
            )
    return found


def reference(data: Mapping[str, Any], found: Sequence[Row]) -> COCOeval:
    """Return what pycocotools makes of it, its twelve numbers in ``stats``."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = json.loads(json.dumps(data))
        known.createIndex()
        judged = COCOeval(known, known.loadRes([dict(one) for one in found]), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def write_detected(
    folder: Path,
    data: Mapping[str, Any],
    found: Sequence[Row],
    parts: int = 3,
    failed: Iterable[int] = (),
    aliases: Mapping[str, str | None] | None = None,
) -> Path:
    """Write an output whose predictions are ``found`` and whose truth is ``data``; return its folder."""
    write_job(folder, str(folder.parent / "photos"), JOB % json.dumps(aliases or {}))
    names = {one["id"]: one["name"] for one in data["categories"]}
    model = ModelClasses(tuple(names.values()), tuple(names))
    (folder / "_job" / "classes.json").write_text(json.dumps(asdict(model)))
    (folder / "_job" / "truth").mkdir()
    classes = [Class(name, number) for number, name in names.items()]
    schema = truth.with_classes(truth.OBJECTS_SCHEMA, classes)
    by_image = _objects(data["annotations"], names), _objects(found, names)
    size = -(-len(data["images"]) // parts)
    for index in range(parts):
        images = data["images"][index * size : (index + 1) * size]
        write_part(folder, index, [_row(one, by_image[1], failed) for one in images], Part(), DETECTED)
        rows = [{"image_id": str(one["id"]), "objects": by_image[0][one["id"]]} for one in images]
        pq.write_table(truth.table(rows, schema), folder / "_job" / "truth" / f"part-{index:08}.parquet")
    return folder


def _row(image: Row, found: Mapping[int, list[Row]], failed: Iterable[int]) -> Row:
    error = {"stage": "decode", "code": "truncated", "message": "made so"} if image["id"] in failed else None
    return {
        "key": image["file_name"],
        "uri": f"/{image['file_name']}",
        "etag": "e",
        "bytes": 1000,
        "width": SIDE,
        "height": SIDE,
        "error": error,
        "vanished": False,
        "camera": "front" if image["id"] % 3 else "back",
        "objects": None if error else found[image["id"]],
    }


def _objects(annotations: Iterable[Row], names: Mapping[int, str]) -> dict[int, list[Row]]:
    """Return annotations or results as objects by image."""
    by_image: dict[int, list[Row]] = defaultdict(list)
    for one in annotations:
        x, y, width, height = one["bbox"]
        box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
        fields = {"label": names[one["category_id"]], "score": one.get("score"), "box": box}
        if "iscrowd" in one:
            fields |= {"crowd": bool(one["iscrowd"]), "area": one["area"]}
        by_image[one["image_id"]].append(fields)
    return by_image
