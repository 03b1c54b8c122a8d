"""The job faces over several workers, and from bucket to bucket: the same rows whoever computed them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

import cnnbatch
from cnnbatch.inference.run import run
from cnnbatch.job import MapJob
from tests import tiny_faces
from tests.clusters import cluster_of
from tests.servers import Bucket
from tests.tasks.test_faces import COLOUR, QUIET, SQUARES

pytest_plugins = ("tests.s3",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

COUNT = 24
BROKEN = 5
SIZES = ((60, 100), (100, 60), (140, 200), (64, 64))


def pictures() -> Iterator[tuple[str, bytes]]:
    """Yield names and files of pictures of four sizes: no face to three, one of them broken."""
    for number in range(COUNT):
        draw = np.random.default_rng(number)
        sides = draw.integers(10, 18, number % 4)
        faces = [
            (("ann", "bob", "cat")[place], 20 * place, int(draw.integers(20)), int(side))
            for place, side in enumerate(sides)
        ]
        file = BytesIO()
        Image.fromarray(tiny_faces.picture(SIZES[number // 4 % 4], faces)).save(file, "PNG")
        yield f"{number:02}.png", b"no picture" if number == BROKEN else file.getvalue()


def job(photos: Any, out: Any, **compute: Any) -> MapJob:
    """Return the job with small shards, and crops as assets."""
    return MapJob.model_validate(
        {
            "task": {
                "name": "faces",
                "detector": {"model": SQUARES, "size": 150},
                "embedder": {"model": COLOUR, "mirror": True},
                "crop": True,
            },
            "input": {**photos, "shard_size": 6},
            "output": out,
            "compute": {
                "batch": 3,
                "cpus_per_worker": 1,
                "precision": "fp32",
                "backend": "eager",
                **compute,
            },
            "max_failed": 0.1,
        }
    )


def are_right(table: pa.Table) -> None:
    """Insist on a row for each picture, in order, with as many faces as it has."""
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == [f"{number:02}.png" for number in range(COUNT)]
    assert [row["key"] for row in rows if row["error"]] == [f"{BROKEN:02}.png"]
    counts = [len(row["objects"]) for row in rows if not row["error"]]
    assert counts == [number % 4 for number in range(COUNT) if number != BROKEN]


def digests(crops: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(crops.items())}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a Ray of two nodes, each with two pretended GPUs."""
    node: dict[str, Any] = {"num_cpus": 3, "num_gpus": 2, "object_store_memory": 10**8}
    with cluster_of(node, node) as cluster:
        yield cluster


def test_one_worker_four_workers_and_four_gpus_on_two_nodes_find_the_same(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in pictures():
        (folder / name).write_bytes(data)
    ways: dict[str, dict[str, Any]] = {
        "inline": {"pool": "inline"},
        "one": {"pool": "local", "workers": 1, "device": "cpu"},
        "four": {"pool": "local", "workers": 4, "device": "cpu"},
        "gpus": {"pool": "ray", "workers": 4, "gpus_per_worker": 1.0},
    }
    crops = {}
    for name, compute in ways.items():
        run(job({"url": str(folder)}, str(tmp_path / name), **compute), QUIET)
        found = [*(tmp_path / name / "assets").rglob("*.jpg")]
        crops[name] = digests({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in found})
    tables = {name: cnnbatch.open(str(tmp_path / name)).arrow() for name in ways}
    are_right(tables["inline"])
    for name in ("one", "four", "gpus"):
        assert tables[name].equals(tables["inline"]), name
        assert crops[name] == crops["inline"] != {}, name
        assert len([*(tmp_path / name / "predictions").glob("part-*")]) == 4


def test_from_bucket_to_bucket_one_worker_and_four_find_the_same(bucket: Bucket) -> None:
    for name, data in pictures():
        bucket.put(f"photos/{name}", data)
    options = bucket.options.model_dump()
    photos = {"url": f"{bucket.url}/photos", "storage": options}
    tables, crops = {}, {}
    for workers in (1, 4):
        out = f"{bucket.url}/out-{workers}"
        run(job(photos, {"url": out, "storage": options}, pool="local", workers=workers, device="cpu"), QUIET)
        tables[workers] = cnnbatch.open(out, options).arrow()
        prefix = f"out-{workers}/assets/"
        listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=prefix)["Contents"]
        crops[workers] = digests(
            {
                one["Key"].removeprefix(prefix): bucket.client.get_object(Bucket=bucket.name, Key=one["Key"])[
                    "Body"
                ].read()
                for one in listed
            }
        )
    are_right(tables[1])
    assert tables[4].equals(tables[1])
    assert crops[4] == crops[1]
    faces = [face for row in tables[1].to_pylist() for face in row["objects"] or []]
    assert {face["crop"].removeprefix("assets/") for face in faces} == {*crops[1]}
