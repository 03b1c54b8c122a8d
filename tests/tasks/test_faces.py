"""The task faces: what its rows have, by small networks whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import cnnbatch
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.output.embeddings import EmbeddingSpace, space_of
from tests import tiny_faces

QUIET = RunOptions(quiet=True)
SQUARES, COLOUR = "tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"


def job(photos: Path, out: Path, embedder: str = COLOUR, **task: Any) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {
                "name": "faces",
                "detector": {"model": SQUARES},
                "embedder": {"model": embedder},
                **task,
            },
            "input": {"url": str(photos), "shard_size": 3},
            "output": str(out),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return four pictures: two faces, none, one, one of them at the border."""
    return tiny_faces.write(
        tmp_path / "photos",
        {
            "a.png": [("bob", 60, 10, 30), ("ann", 5, 20, 20)],
            "b.png": [],
            "c.png": [("cat", 30, 30, 12)],
            "d.png": [("ann", 84, 44, 16)],
        },
    )


def run_faces(photos: Path, out: Path, **task: Any) -> None:
    """Run the job on a folder."""
    run(job(photos, out, **task), QUIET)


def objects(out: Path) -> list[Any]:
    return cnnbatch.open(str(out)).arrow(["objects"])["objects"].to_pylist()


def test_faces_are_rows_of_objects_from_left_to_right(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out")
    two, none, one, border = objects(tmp_path / "out")
    assert none == []
    assert [face["box"]["x1"] for face in two] == [5, 60]
    assert [face["label"] for face in two] == ["face", "face"]
    assert two[1]["box"] == {"x1": 60, "y1": 10, "x2": 90, "y2": 40}
    assert two[1]["score"] == pytest.approx(0.3)
    nose = two[1]["keypoints"][2]
    assert (nose["x"], nose["y"], nose["visibility"]) == pytest.approx((60 + 15 - 0.5, 10 + 16.5 - 0.5, 2))
    assert border[0]["box"]["x2"] == 100
    for face, who in ((two[0], "ann"), (two[1], "bob"), (one[0], "cat"), (border[0], "ann")):
        assert face["embedding"] == pytest.approx(np.array(tiny_faces.PEOPLE[who]) / 100, abs=0.15)
    quality = two[0]["quality"]
    assert quality["size"] == 20
    assert abs(quality["yaw"]) < 1
    assert abs(quality["roll"]) < 1


def test_a_part_says_where_embeddings_lie(photos: Path, tmp_path: Path) -> None:
    run(job(photos, tmp_path / "out", "tests.tiny_faces:unit_colour"), QUIET)
    (first, *_) = sorted((tmp_path / "out" / "predictions").glob("*.parquet"))
    faces: Any = pq.read_schema(first).field("objects").type.value_type
    assert faces.field("embedding").type == pa.list_(pa.float32(), 2)
    space = EmbeddingSpace("tests.tiny_faces:unit_colour", "colour", 2, "l2", "cosine")
    assert space_of(faces.field("embedding")) == space
    for face in (face for some in objects(tmp_path / "out") for face in some):
        assert np.linalg.norm(face["embedding"]) == pytest.approx(1)


def test_fields_choose_the_faces(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "large", min_size=15)
    assert [len(some) for some in objects(tmp_path / "large")] == [2, 0, 0, 1]
    run_faces(photos, tmp_path / "sure", min_score=0.25)
    assert [len(some) for some in objects(tmp_path / "sure")] == [1, 0, 0, 0]
    run_faces(photos, tmp_path / "one", max_faces=1)
    (best,) = objects(tmp_path / "one")[0]
    assert best["box"]["x1"] == 60


def test_crops_are_what_was_embedded(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out", crop=True)
    two, *_ = objects(tmp_path / "out")
    for number, (face, who) in enumerate(zip(two, ("ann", "bob"), strict=True)):
        assert face["crop"].startswith(f"assets/crop/part-00000000/00000000.{number}-")
        with Image.open(tmp_path / "out" / face["crop"]) as image:
            chip = np.asarray(image).astype(int)
        assert chip.shape == (tiny_faces.SIDE, tiny_faces.SIDE, 3)
        assert np.abs(chip[4:12, 4:12] - (tiny_faces.RED, *tiny_faces.PEOPLE[who])).max() < 12


def test_rows_do_not_depend_on_batch_and_shape(photos: Path, tmp_path: Path) -> None:
    tiny_faces.write(photos, {"e.png": [("bob", 100, 100, 40)]}, size=(200, 300))
    run_faces(photos, tmp_path / "one")
    many = job(photos, tmp_path / "many").model_copy(update={})
    alone = MapJob.model_validate({**many.model_dump(), "compute": {**many.compute.model_dump(), "batch": 1}})
    run(alone, QUIET)
    assert objects(tmp_path / "one") == objects(tmp_path / "many")


def test_a_licence_that_forbids_commercial_use_is_said(photos: Path, tmp_path: Path) -> None:
    from cnnbatch.tasks.faces import Faces
    from cnnbatch.types import Runtime

    task = Faces.model_validate(job(photos, tmp_path, "tests.tiny_faces:unit_colour").task.model_dump())
    assert any(
        "is not for commercial use: licence research" in note for note in task.load(Runtime("cpu")).notes
    )
