"""Whose pictures an index may have shown: one that others may have written names none of this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnbatch
from cnnbatch.index.originals import Originals, cut_out
from cnnbatch.storage import Storage
from tests import tiny_faces
from tests.embedded import build
from tests.servers import Bucket
from tests.tasks.test_faces import run_faces
from tests.tiny_faces import PEOPLE, RED

pytest_plugins = ("tests.s3",)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output of one picture of ann."""
    folder = tmp_path_factory.mktemp("originals")
    run_faces(tiny_faces.write(folder / "photos", {"a.png": [("ann", 30, 20, 24)]}), folder / "out")
    return folder / "out"


def shown(originals: Originals, index: str, **options: object) -> list[int] | None:
    """Return the middle pixel of the picture of the index's one row."""
    [row] = cnnbatch.open(index, options or None).search(np.ones(2), 1).to_pylist()
    crop = originals.crop(row, 32)
    return None if crop is None else np.asarray(crop)[16, 16].tolist()


def in_bucket(out: Path, bucket: Bucket) -> str:
    """Build an index in a bucket, of an output on this machine."""
    place = f"{bucket.url}/index"
    build(out, place, output={"url": place, "storage": bucket.options.model_dump()})
    return place


def copied(out: Path, bucket: Bucket) -> str:
    """Build an index in a bucket, of an output in the same one, whose photos are on this machine."""
    for file in out.rglob("*"):
        if file.is_file():
            bucket.put(f"out/{file.relative_to(out)}", file.read_bytes())
    place, options = f"{bucket.url}/index", bucket.options.model_dump()
    build(
        Path(), place, url=[f"{bucket.url}/out"], storage=options, output={"url": place, "storage": options}
    )
    return place


def test_a_persons_own_index_shows_its_pictures(out: Path, tmp_path: Path) -> None:
    build(out, tmp_path / "index")
    originals = Originals(str(tmp_path / "index"), Storage())
    assert shown(originals, str(tmp_path / "index")) == [RED, *PEOPLE["ann"]]
    assert not [*originals.problems()]


def test_an_index_in_a_bucket_names_no_output_of_this_machine(out: Path, bucket: Bucket) -> None:
    place, options = in_bucket(out, bucket), bucket.options.model_dump()
    originals = Originals(place, Storage(bucket.options))
    assert shown(originals, place, **options) is None
    [problem] = originals.problems()
    assert problem.startswith(f"1 picture of {out} not shown: {out} is named by an index")
    assert problem.endswith("where it is to be trusted, give --allow local")
    assert shown(Originals(place, Storage(bucket.options), ["local"]), place, **options) is not None


def test_an_output_in_a_bucket_names_no_photo_of_this_machine(out: Path, bucket: Bucket) -> None:
    place, options = copied(out, bucket), bucket.options.model_dump()
    originals = Originals(place, Storage(bucket.options), ["buckets"])
    assert shown(originals, place, **options) is None
    [problem] = originals.problems()
    photo = out.parent / "photos" / "a.png"
    assert problem.startswith(f"1 picture of {bucket.url}/out not shown: {photo} is named by an index")
    allowed = Originals(place, Storage(bucket.options), ["local"])
    assert shown(allowed, place, **options) == [RED, *PEOPLE["ann"]]


def test_a_list_that_the_output_was_allowed_is_not_allowed_again(out: Path, bucket: Bucket) -> None:
    """What the job of a stranger's output allowed its list is nothing that the reader has allowed."""
    place = copied(out, bucket)
    job = out / "_job" / "job.yaml"
    listed = f"{bucket.url}/list.txt"
    bucket.put("list.txt", str(out.parent / "photos" / "a.png").encode())
    text = job.read_text().replace(str(out.parent / "photos"), listed)
    assert listed in text
    bucket.put("out/_job/job.yaml", text.replace("input:\n", "input:\n  allow: [local]\n").encode())
    originals = Originals(place, Storage(bucket.options))
    assert shown(originals, place, **bucket.options.model_dump()) is None


def test_a_picture_that_is_gone_is_named_with_its_reason(out: Path, tmp_path: Path) -> None:
    photos = tiny_faces.write(tmp_path / "photos", {"b.png": [("bob", 30, 20, 24)], "c.png": []})
    run_faces(photos, tmp_path / "out")
    build(tmp_path / "out", tmp_path / "index")
    (photos / "b.png").unlink()
    originals = Originals(str(tmp_path / "index"), Storage())
    assert shown(originals, str(tmp_path / "index")) is None
    assert [*originals.problems()] == [
        f"1 picture of {tmp_path / 'out'} not shown: {photos / 'b.png'}: no longer where it was"
    ]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    originals = Originals(str(tmp_path / "index"), Storage())
    assert shown(originals, str(tmp_path / "index")) is None
    assert "expected an output of a job" in next(originals.problems())


@pytest.mark.parametrize(
    "box",
    [(-50, -50, -10, -10), (500, 500, 600, 600), (90, 50, 10, 5), (float("nan"), 0, float("inf"), 5)],
)
def test_a_box_that_is_none_of_the_picture_shows_some_of_it(box: tuple[float, ...]) -> None:
    crop = cut_out(Image.new("RGB", (100, 60)), dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), 32)
    assert 1 <= min(crop.size) <= max(crop.size) == 32
