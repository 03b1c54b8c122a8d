"""A pose network's training: pictures with any points in, a network out whose answers know the sigmas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import cnnbatch
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.launch import launch
from cnnbatch.truth import sigmas_of
from tests import tiny_keypoints as tiny

QUIET = RunOptions(quiet=True)
SETTINGS = {
    "epochs": 10,
    "batch": 4,
    "learning_rate": 0.004,
    "proposals": 32,
    "warmup": 0.1,
    "validation": 0.1,
    "test": 0.2,
}


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny.with_a_small_head(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training on COCO's keypoints, three an object."""
    folder = tmp_path_factory.mktemp("keypoints")
    truth = tiny.write_coco(folder / "coco", 48)
    assert launch(tiny.job(truth, folder / "out", SETTINGS), QUIET).exit_status == 0
    return folder / "out"


@pytest.mark.slow
def test_a_pose_network_learns_a_made_set(trained: Path) -> None:
    about = json.loads((trained / "model.json").read_text())
    assert about["architecture"] | {"library": ""} == {
        "task": "keypoints",
        "model": tiny.MODEL,
        "library": "",
        "sigmas": [*tiny.SIGMAS],
        "swapped": [[0, 1]],
    }
    assert about["validation"]["of"] == "keypoint_AP50"
    assert about["validation"]["keypoint_AP50"] > 0.5
    judged = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert judged["keypoint_AP50"]["value"] > 0.5


@pytest.mark.slow
def test_the_trained_folder_finds_points_and_is_judged_by_its_sigmas(trained: Path, tmp_path: Path) -> None:
    truth = tiny.write_coco(tmp_path / "coco", 6)
    spec = MapJob.model_validate(
        {
            "task": {"name": "keypoints", "model": str(trained), "score_threshold": 0.3, "max_objects": 1},
            "input": str(truth),
            "output": str(tmp_path / "out"),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )
    assert run(spec, QUIET).exit_status == 0
    schema: Any = pq.read_schema(tmp_path / "out" / "predictions" / "part-00000000.parquet")
    assert sigmas_of(schema.field("objects").type.value_type) == tiny.SIGMAS
    rows = cnnbatch.open(str(tmp_path / "out")).arrow(["key", "objects"]).to_pylist()
    errors = []
    for row in rows:
        _, box, points = tiny.drawn(int(row["key"][:3]))
        found = [(point["x"], point["y"]) for point in row["objects"][0]["keypoints"]]
        errors += [np.hypot(*np.subtract(a, b)) / box[2] for a, b in zip(found, points, strict=True)]
    assert np.median(errors) < 0.1
    evaluation = cnnbatch.open(str(tmp_path / "out")).evaluation()
    assert evaluation is not None
    assert (evaluation.metrics["keypoint_AP50"].value or 0) > 0.5
    assert evaluation.notes == {}
