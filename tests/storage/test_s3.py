"""A whole job from bucket to bucket: input, plan, parts and report on S3, served by moto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cnnbatch
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.launch import launch
from cnnbatch.storage import Storage
from tests import tiny
from tests.conftest import jpeg
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)
QUIET = RunOptions(quiet=True)


def job(bucket: Bucket, out: str, **task: Any) -> MapJob:
    storage = bucket.options.model_dump()
    return MapJob.model_validate(
        {
            "task": {"name": "tests.toy:Toy", **task},
            "input": {"url": f"{bucket.url}/photos/**/*.jpg", "shard_size": 8, "storage": storage},
            "output": {"url": f"{bucket.url}/{out}", "storage": storage},
            "compute": {"pool": "inline", "batch": 4, "cpus_per_worker": 1},
        }
    )


@pytest.fixture
def photos(bucket: Bucket) -> Bucket:
    for number in range(20):
        body = b"" if number == 5 else jpeg(number)
        bucket.client.put_object(Bucket=bucket.name, Key=f"photos/{number % 2}/{number:03}.jpg", Body=body)
    bucket.client.put_object(Bucket=bucket.name, Key="photos/notes.txt", Body=b"not listed")
    return bucket


@pytest.mark.slow
def test_from_bucket_to_bucket(photos: Bucket) -> None:
    spec = job(photos, "out")
    summary = run(spec, QUIET)
    assert (summary.images, dict(summary.failed)) == (20, {"empty": 1})
    rows = cnnbatch.open(f"{photos.url}/out", Storage(photos.options)).arrow().to_pylist()
    assert [row["key"] for row in rows] == sorted(f"{number % 2}/{number:03}.jpg" for number in range(20))
    listed = photos.client.list_objects_v2(Bucket=photos.name, Prefix="out/")["Contents"]
    assert {entry["Key"].split("/")[1] for entry in listed} == {"_job", "predictions", "report.html"}
    assert run(spec, QUIET).images == 0


@pytest.mark.slow
def test_retry_failed_replaces_a_part_of_a_bucket(photos: Bucket) -> None:
    spec = job(photos, "out")
    run(spec, QUIET)
    photos.client.put_object(Bucket=photos.name, Key="photos/1/005.jpg", Body=jpeg(5))
    summary = run(spec, RunOptions(retry_failed=True, quiet=True))
    assert (summary.images, summary.exit_status) == (1, 0)
    rows = cnnbatch.open(f"{photos.url}/out", Storage(photos.options)).arrow().to_pylist()
    assert not any(row["error"] for row in rows)
    assert len(rows) == 20


@pytest.mark.slow
def test_a_training_from_bucket_to_bucket(bucket: Bucket, tmp_path: Path) -> None:
    for path in tiny.colours(tmp_path, 10).rglob("*.png"):
        key = f"set/{path.relative_to(tmp_path)}"
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=path.read_bytes())
    storage = bucket.options.model_dump()
    places = {"input": {"url": f"{bucket.url}/set", "storage": storage}}
    spec = tiny.job("", "unused", {"epochs": 2}, **places).model_copy(
        update={"output": job(bucket, "model").output}
    )
    summary = launch(spec, QUIET)
    assert summary.exit_status == 0
    assert summary.total > 0
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="model/")["Contents"]
    names = {entry["Key"].removeprefix("model/") for entry in listed}
    assert {"model.safetensors", "model.json", "metrics.parquet", "evaluation.json", "report.html"} <= names
    kept = [name for name in names if name.startswith("_job/training/checkpoints/")]
    assert sorted(kept) == [
        "_job/training/checkpoints/000002-000000000.pt",
        "_job/training/checkpoints/best.pt",
    ]
    assert launch(spec, QUIET).images == 0
