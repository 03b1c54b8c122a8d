"""Aligned faces as files by their pictures' names, and faces embedded by what was trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import MapJob, TrainJob
from cnnbatch.launch import launch
from cnnbatch.output.embeddings import space_of
from tests import tiny_faces
from tests.tasks.test_faces import run_faces

QUIET = RunOptions(quiet=True)
PICTURES = {
    "ann/0.png": [("ann", 8, 8, 24), ("bob", 60, 20, 12)],
    "ann/1.png": [("ann", 30, 20, 20)],
    "bob/0.png": [("bob", 40, 20, 24)],
    "bob/1.png": [("bob", 20, 10, 24)],
    "cat/0.png": [],
}


@pytest.fixture
def found(tmp_path: Path) -> Path:
    run_faces(tiny_faces.write(tmp_path / "people", PICTURES), tmp_path / "out", crop=True)
    return tmp_path / "out"


def export(out: Path, to: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", str(out), "--format", "chips", "--to", str(to), *arguments])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        ("largest", ["ann/0.jpg", "ann/1.jpg", "bob/0.jpg", "bob/1.jpg"]),
        ("all", ["ann/0/0.jpg", "ann/0/1.jpg", "ann/1/0.jpg", "bob/0/0.jpg", "bob/1/0.jpg"]),
    ],
)
def test_chips_are_named_as_their_pictures(
    found: Path, tmp_path: Path, face: str, expected: list[str]
) -> None:
    done = export(found, tmp_path / "chips", "--face", face)
    assert done.exit_code == 0, done.output
    assert files(tmp_path / "chips") == expected
    assert "without a face: 1 image" in done.output
    first = np.asarray(Image.open(tmp_path / "chips" / expected[0]), int)
    assert first.shape == (tiny_faces.SIDE, tiny_faces.SIDE, 3)
    middle = first[4:12, 4:12].reshape(-1, 3).mean(0)
    assert np.abs(middle - (tiny_faces.RED, *tiny_faces.PEOPLE["ann"])).max() < 25


def test_an_output_without_crops_is_refused(tmp_path: Path) -> None:
    run_faces(tiny_faces.write(tmp_path / "people", PICTURES), tmp_path / "out")
    done = export(tmp_path / "out", tmp_path / "chips")
    assert done.exit_code == 2
    assert "task.crop=true" in done.output
    assert not (tmp_path / "chips").exists()


def training(chips: Path, out: Path, **task: object) -> TrainJob:
    return TrainJob.model_validate(
        {
            "kind": "train",
            "task": {
                "name": "embed",
                "model": "mobilenet_v3_small",
                "weights": "random",
                "preprocessing": {"resize": [32, 32], "crop": 32, "fit": "squash"},
                **task,
            },
            "train": {"strategy": "as_is", "validation": 0.5, "test": 0.0},
            "input": str(chips),
            "output": str(out),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )


def embedding_by(folder: Path, photos: Path, out: Path) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {
                "name": "faces",
                "detector": {"model": "tests.tiny_faces:squares"},
                "embedder": {"model": str(folder)},
                "crop": True,
            },
            "input": str(photos),
            "output": str(out),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )


@pytest.mark.slow
def test_what_was_trained_on_chips_embeds_the_faces_of_photographs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for person in range(8):
        (tmp_path / "chips" / f"p{person}").mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (150, 150, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "chips" / f"p{person}" / f"{number}.png")
    launch(training(tmp_path / "chips", tmp_path / "net", template="dlib"), QUIET)
    photos = tiny_faces.write(tmp_path / "people", PICTURES)
    launch(embedding_by(tmp_path / "net", photos, tmp_path / "faces"), QUIET)
    rows = cnnbatch.open(str(tmp_path / "faces")).arrow(["key", "objects"])
    objects = rows.schema.field("objects").type.value_type
    space = space_of(objects.field("embedding"))
    assert space is not None
    assert space.network == str(tmp_path / "net")
    # The task embed gives the chip of a face the same vector.
    assert export(tmp_path / "faces", tmp_path / "cut").exit_code == 0
    used = MapJob.model_validate(
        {
            "task": {"name": "embed", "model": str(tmp_path / "net")},
            "input": str(tmp_path / "cut"),
            "output": str(tmp_path / "vectors"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    launch(used, QUIET)
    alone = {
        row["key"].removesuffix(".jpg"): row["embedding"]
        for row in cnnbatch.open(str(tmp_path / "vectors")).arrow(["key", "embedding"]).to_pylist()
    }
    for row in rows.to_pylist():
        name = row["key"].removesuffix(".png")
        if row["objects"] and len(row["objects"]) == 1:
            assert np.dot(row["objects"][0]["embedding"], alone[name]) > 0.98  # JPEG changes a chip a little.


@pytest.mark.slow
def test_a_folder_that_does_not_say_how_faces_were_aligned_is_refused(tmp_path: Path) -> None:
    for person in range(6):
        (tmp_path / "chips" / f"p{person}").mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 20), (person * 40, number * 90, 90)).save(
                tmp_path / "chips" / f"p{person}" / f"{number}.png"
            )
    launch(training(tmp_path / "chips", tmp_path / "net"), QUIET)
    photos = tiny_faces.write(tmp_path / "people", PICTURES)
    with pytest.raises(UserError, match=r"task\.template=dlib"):
        launch(embedding_by(tmp_path / "net", photos, tmp_path / "faces"), QUIET)
