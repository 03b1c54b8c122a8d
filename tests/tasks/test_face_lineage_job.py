"""jobs/face_lineage.yaml: every case trains, or is fitted, and stands in one table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cnnbatch.inference.run import RunOptions
from cnnbatch.job import StudyJob, load_job
from cnnbatch.launch import launch
from tests.tasks.test_embed import people


@pytest.mark.slow
def test_every_case_is_measured_and_a_lesson_shows_what_each_learned(tmp_path: Path) -> None:
    overrides = [
        f"input={people(tmp_path / 'people', 16, 3)}",
        f"output={tmp_path / 'out'}",
        "task.model=tests.tiny:build",
        "task.features=1.1",
        "task.preprocessing={resize: [16, 16], crop: 16, fit: squash}",
        "train.epochs=2",
        "lesson=true",
        "train.validation=0.25",
        "train.test=0.25",
        "compute={pool: inline, precision: fp32, backend: eager}",
    ]
    job = load_job("face_lineage", overrides)
    assert isinstance(job, StudyJob)
    assert launch(job, RunOptions(quiet=True)).exit_status == 0
    groups = json.loads((tmp_path / "out" / "study.json").read_text())["groups"]
    found = {one["case"]: one["test"] for one in groups}
    assert list(found) == list(job.study.cases)
    assert all(one["seconds"] > 0 for one in groups), groups  # Also of those that are only fitted.
    assert all(value > 0.5 for value in found.values()), found
    page = (tmp_path / "out" / "report.html").read_text()
    table = page[page.index('id="cases"') :]
    assert all(name in table for name in found)
    assert table.index("1991 Eigenfaces") < table.index("2019 ArcFace")
    for case, settings in job.study.cases.items():
        [link] = re.findall(rf'href="(trials/{re.escape(slug(case))}/report\.html)"', page)
        trial = (tmp_path / "out" / link).read_text()
        assert "Hardest pairs of the validation" in trial, case
        assert ("Mined triplets" in trial) == (case == "2015 FaceNet, triplet"), case
        is_fitted = settings.get("train", {}).get("strategy") == "as_is"
        assert ("Embeddings in two dimensions" in trial) != is_fitted, case


def slug(case: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", case.lower())
