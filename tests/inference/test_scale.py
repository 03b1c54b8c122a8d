"""What stays bounded, whatever the size of the collection: the driver's memory and the listing's lead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.places import CHECKOUT

pytestmark = pytest.mark.slow

DRIVER = """
import json, sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ray  # The real driver has it, so it counts.

from cnnbatch.job import MapJob
from cnnbatch.inference.driver.planner import Planner
from cnnbatch.output.folder import Output
from cnnbatch.inference.worker.host_memory import peak_rss_bytes
from cnnbatch.sources import open_source
from cnnbatch.storage import Entry, NotFound, Storage


class ListedBucket(Storage):
    '''A bucket of which only the list call is answered: a thousand keys a page.'''

    def list(self, uri, after=None):
        for number in range(COUNT):
            yield Entry(f"{uri}/{number // 1000:05}/photo-{number:09}.jpg", 100_000, f'"{number:032x}"')

    def head(self, uri):
        raise NotFound(uri)


COUNT, url, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
job = MapJob.model_validate({"task": {"name": "tests.toy:Toy"}, "input": url, "output": out})
storage = ListedBucket() if url.startswith("s3:") else Storage()
planner = Planner(Output(out, Storage()), open_source(job.input, storage), job.input, 1000)
planner.start()
images = sum(len(shard.refs) for shard in planner.shards() if shard is not None)
print(json.dumps({"images": images, "peak_mb": peak_rss_bytes() / 2**20, "torch": "torch" in sys.modules}))
"""


def drive(*arguments: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_driver_stays_small_with_a_million_images_of_a_bucket(tmp_path: Path) -> None:
    answer = drive(1_000_000, "s3://bucket/photos", tmp_path / "out")
    assert answer["images"] == 1_000_000
    assert answer["peak_mb"] < 300
    assert not answer["torch"]


def test_the_driver_stays_small_with_many_images_in_folders(tmp_path: Path) -> None:
    first = tmp_path / "photos" / "album-000"
    first.mkdir(parents=True)
    for number in range(10_000):
        (first / f"{number:05}.jpg").touch()
    for album in range(1, 30):  # Links: so many files take as long to make as to list.
        first.with_name(f"album-{album:03}").symlink_to(first, target_is_directory=True)
    answer = drive(0, first.parent, tmp_path / "out")
    assert answer["images"] == 300_000
    assert answer["peak_mb"] < 300
    assert not answer["torch"]
