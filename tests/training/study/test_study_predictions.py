"""Studies without training: cases that are predicted and judged, gone on with, and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import MapJob, StudyJob, cases_of, parse_job
from cnnbatch.launch import launch, report
from cnnbatch.storage import Storage
from cnnbatch.training.study.predictions import run as running
from tests import tiny_faces
from tests.tasks import test_faces

QUIET = RunOptions(quiet=True)
PAIRS = """a,b,same
ann/1.png,ann/2.png,1
bob/1.png,bob/2.png,1
cat/1.png,cat/2.png,1
ann/1.png,bob/1.png,0
bob/1.png,cat/1.png,0
cat/2.png,ann/2.png,0
"""
CASES = {
    "aligned": {},
    "turned": {"task": {"turn": 90}},
    "not found": {"task": {"min_size": 25}},
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return a folder with two pictures of each person, in ``people``, and pairs; bob's faces are the largest."""
    sides = {"ann": 20, "bob": 30, "cat": 20}
    faces = {
        f"{who}/{number}.png": [(who, 40, 8 * number, side)]
        for who, side in sides.items()
        for number in (1, 2)
    }
    tiny_faces.write(tmp_path / "people", faces)
    (tmp_path / "pairs.csv").write_text(PAIRS)
    return tmp_path


def study(made: Path, **fields: Any) -> StudyJob:
    """Return a study of the cases above."""
    template = test_faces.job(made / "people", made / "out").model_dump(mode="json")
    data = {
        **template,
        "kind": "study",
        "evaluate": {"truth": str(made / "pairs.csv"), "slices": ["pose"]},
        "study": {"metric": "EER", "cases": CASES},
        **fields,
    }
    return StudyJob.model_validate(data)


def test_each_case_is_a_job_of_its_own_and_a_row(made: Path) -> None:
    summary = launch(study(made), QUIET)
    assert (summary.images, summary.total, summary.exit_status) == (3, 3, 0)
    rows = pq.read_table(made / "out" / "study.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["aligned", "turned", "not-found"]
    assert [row["EER"] for row in rows][:2] == [0, 0]
    assert [row["failed_pairs"] for row in rows] == [0, 0, 5]
    for row, case in zip(rows, cases_of(study(made)), strict=True):
        folder = made / "out" / "trials" / row["name"]
        judged = json.loads((folder / "evaluation.json").read_text())
        assert row["EER"] == judged["metrics"]["EER"]["value"]
        assert row["EER_low"] == judged["metrics"]["EER"]["low"]
        assert (folder / "report.html").exists()
        assert isinstance(case.job, MapJob)
    found = json.loads((made / "out" / "study.json").read_text())
    assert [one["case"] for one in found["cases"]] == list(CASES)
    assert found["cases"][2]["slices"]["pose"].keys() == {"frontal", "no face"}
