"""The job on photographs of COCO: what is evaluated and exported, judged again from the exported files."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import cnnbatch
from cnnbatch.models import Segmenter
from cnnbatch.models.segmenter import own_size
from cnnbatch.output.export import export
from tests.places import SHARED
from tests.tiny_instances import inside
from tests.tiny_segmenter import NearestColour

TRUTH = SHARED / "data" / "coco-sample" / "annotations"


Segments = tuple[NDArray[np.int64], dict[int, dict[str, Any]]]
"""Of an image the id of each pixel, and the segments by their ids."""


@dataclass(frozen=True)
class Panoptic:
    """A panoptic file of COCO's: its categories by id, its images by name."""

    categories: dict[int, dict[str, Any]]
    images: dict[str, Segments]


def read(folder: Path) -> Panoptic:
    data = json.loads((folder / "panoptic.json").read_text())
    names = {one["id"]: one["file_name"] for one in data["images"]}
    images = {}
    for one in data["annotations"]:
        with Image.open(folder / "panoptic" / one["file_name"]) as image:
            ids = np.asarray(image.convert("RGB"), np.int64) @ np.array([1, 1 << 8, 1 << 16])
        images[names[one["image_id"]]] = ids, {segment["id"]: segment for segment in one["segments_info"]}
    return Panoptic({one["id"]: one for one in data["categories"]}, images)


def quality(said: Panoptic, true: Panoptic) -> dict[str, float]:
    """Return PQ, SQ and RQ as ``pq_compute`` and ``pq_average`` of panopticapi count them."""
    sums: Sums = defaultdict(lambda: np.zeros(4))
    for key, known in true.images.items():
        count(said.images[key], known, sums)
    iou, hits, wrong, missed = np.array([one for one in sums.values() if one.any()]).T
    all_of = hits + wrong / 2 + missed / 2
    means = ((iou / all_of).mean(), (iou / np.maximum(hits, 1)).mean(), (hits / all_of).mean())
    return dict(zip(("PQ", "SQ", "RQ"), map(float, means), strict=True))


Sums = dict[int, NDArray[np.float64]]
"""Of each category the sum of IoU, and how many segments are hit, wrong and missed."""


def count(said: Segments, true: Segments, sums: Sums) -> None:
    """Add an image, pixel by pixel."""
    (said_ids, found), (true_ids, known) = said, true
    areas, said_areas = Counter(true_ids.ravel().tolist()), Counter(said_ids.ravel().tolist())
    shared = Counter[tuple[int, int]]()
    pairs, counts = np.unique(true_ids << 24 | said_ids, return_counts=True)
    for pair, pixels in zip(pairs.tolist(), counts.tolist(), strict=True):
        shared[pair >> 24, pair & 0xFFFFFF] = pixels
    hit = set()
    crowds = {one["category_id"]: id for id, one in known.items() if one["iscrowd"]}
    for (mine, other), pixels in shared.items():
        if mine in known and other in found and not known[mine]["iscrowd"]:
            union = areas[mine] + said_areas[other] - pixels - shared[0, other]
            category = known[mine]["category_id"]
            if category == found[other]["category_id"] and 2 * pixels > union:
                sums[category] += (pixels / union, 1, 0, 0)
                hit |= {("true", mine), ("said", other)}
    for id, one in known.items():
        sums[one["category_id"]] += (0, 0, 0, not one["iscrowd"] and ("true", id) not in hit)
    for id, one in found.items():
        ignored = shared[0, id] + shared[crowds.get(one["category_id"], -1), id]
        sums[one["category_id"]] += (0, 0, ("said", id) not in hit and 2 * ignored <= said_areas[id], 0)


def names(is_thing: bool) -> list[str]:
    listed = json.loads((TRUTH / "panoptic.json").read_text())["categories"]
    return [one["name"] for one in listed if one["isthing"] == is_thing]


def mean_colours() -> Segmenter:
    """Return a network that gives each pixel the stuff class whose mean colour on the sample is nearest."""
    known, stuff = read(TRUTH), names(is_thing=False)
    sums = {name: np.zeros(4) for name in stuff}
    for key, (ids, segments) in known.images.items():
        with Image.open(TRUTH.parent / "images" / key) as image:
            pixels = np.asarray(image.convert("RGB"), np.float64)[::8, ::8]
        for one, segment in segments.items():
            inside = ids[::8, ::8] == one
            name = known.categories[segment["category_id"]]["name"]
            if name in sums:
                sums[name] += (*pixels[inside].sum(axis=0), inside.sum())
    colours = [(one[:3] / one[3]).tolist() if one[3] else [-999.0] * 3 for one in sums.values()]
    return Segmenter(NearestColour(colours), own_size(), tuple(stuff), weights="means", library="tiny 1")


@pytest.mark.slow
def test_photographs_are_judged_and_exported(shared: Path, tmp_path: Path) -> None:
    things = {"model": "maskrcnn_mobilenet_v2_fpn", "weights": "random", "size": [96, 160]}
    summary = cnnbatch.run(
        "panoptic",
        quiet=True,
        task={
            "semantic": {"model": "tests.tasks.test_panoptic_coco:mean_colours", "weights": "DEFAULT"},
            "instances": {**things, "classes": names(is_thing=True), "max_objects": 3},
            "score": 0.0,
            "stuff_area": 1024,
        },
        input={"url": str(TRUTH.parent / "images"), "truth": str(TRUTH / "panoptic.json"), "limit": 20},
        output=str(tmp_path / "out"),
        compute={"pool": "inline", "precision": "fp32", "backend": "eager", "batch": 4},
    )
    metrics = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    export(str(tmp_path / "out"), "panoptic", str(tmp_path / "exported"))
    said, true = read(tmp_path / "exported"), read(TRUTH)
    judged = Panoptic(true.categories, {key: one for key, one in true.images.items() if key in said.images})
    assert len(judged.images) == 20
    expected = quality(said, judged)
    assert expected["PQ"] > 0
    assert {name: metrics[name]["value"] for name in expected} == pytest.approx(expected)
    rows = cnnbatch.open(tmp_path / "out").arrow(["key", "objects"]).to_pylist()
    for row in rows:
        segments = said.images[row["key"]][1].values()
        listed = [said.categories[one["category_id"]] for one in segments]
        assert [(one["name"], bool(one["isthing"])) for one in listed] == [
            (one["label"], one["is_thing"]) for one in row["objects"]
        ]
        assert [one["area"] for one in segments] == [int(inside(one["mask"]).sum()) for one in row["objects"]]
    assert "panoptic quality" in (tmp_path / "out" / "report.html").read_text()
    assert summary.images == 20
