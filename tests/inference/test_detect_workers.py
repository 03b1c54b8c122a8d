"""Detection over several workers: the same table whoever computed it, and boxes on the report's pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from cnnbatch.inference.run import run
from cnnbatch.job import MapJob
from tests.clusters import cluster_of
from tests.inference.test_run import QUIET, parts, table

TASK = {
    "name": "detect",
    "model": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "weights": "random",
    "score_threshold": 0.0,
    "max_objects": 5,
    "size": [64, 96],
}
SIZES = ((60, 80), (80, 60), (50, 90), (64, 64))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a Ray of two nodes, each with two pretended GPUs."""
    node: dict[str, Any] = {"num_cpus": 3, "num_gpus": 2, "object_store_memory": 10**8}
    with cluster_of(node, node) as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fill a folder with pictures of four shapes, one of them broken."""
    (tmp_path / "photos").mkdir()
    for number in range(24):
        noise = np.random.default_rng(number).integers(0, 256, (*SIZES[number % 4], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number:02}.jpg")
    (tmp_path / "photos" / "05.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def job(folder: Path, out: Path, **compute: Any) -> MapJob:
    """Return a detection job with small shards."""
    return MapJob.model_validate(
        {
            "task": TASK,
            "input": {"url": str(folder), "shard_size": 6},
            "output": str(out),
            "compute": {"batch": 2, "cpus_per_worker": 1, "precision": "fp32", **compute},
            "max_failed": 0.1,
        }
    )


@pytest.mark.slow
def test_one_worker_four_workers_and_four_gpus_on_two_nodes_find_the_same(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "inline": {"pool": "inline"},
        "one": {"pool": "local", "workers": 1, "device": "cpu"},
        "four": {"pool": "local", "workers": 4, "device": "cpu"},
        "gpus": {"pool": "ray", "workers": 4, "gpus_per_worker": 1.0},
    }
    for name, compute in ways.items():
        run(job(folder, tmp_path / name, **compute), QUIET)
    tables = {name: table(tmp_path / name) for name in ways}
    rows = tables["inline"].to_pylist()
    assert [row["key"] for row in rows] == [f"{number:02}.jpg" for number in range(24)]
    assert [row["key"] for row in rows if row["error"]] == ["05.jpg"]
    assert all(len(row["objects"]) == 5 for row in rows if not row["error"])
    for name in ("one", "four", "gpus"):
        assert tables[name].equals(tables["inline"]), name
        assert len(parts(tmp_path / name)) == 4


@pytest.mark.slow
def test_a_report_shows_what_was_found(photos: Callable[[int], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(photos(3), out, pool="inline"), QUIET)
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 3
    assert page.count("data:image/jpeg") == 3
    assert "nothing" in page  # Random weights are sure of nothing.
