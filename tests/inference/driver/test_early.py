"""The server of local workers starts before the run is imported where it is surely needed, and only there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cnnbatch.inference.driver import early, local_workers
from tests.inference.driver.test_kills import command
from tests.inference.test_run import job


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that has an element once a server would have been started."""
    found: list[bool] = []
    monkeypatch.setattr(local_workers, "begin", lambda: found.append(True))
    return found


@pytest.mark.parametrize(
    ("images", "sections", "starts"),
    [
        (30, {}, True),
        (20, {}, False),
        (30, {"input": {"limit": 5}}, False),
        (3, {"compute": {"workers": 2}}, True),
        (30, {"compute": {"pool": "inline"}}, False),
        (30, {"compute": {"pool": "ray", "workers": 2}}, False),
        (30, {"output": "s3://bucket/out"}, False),
    ],
)
def test_it_starts_where_it_is_surely_needed(
    begun: list[bool],
    images: int,
    sections: dict[str, Any],
    starts: bool,
    photos: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    compute = {"pool": "auto", **sections.pop("compute", {})}
    early.begin(job(photos(images), tmp_path / "out", compute=compute, **sections))
    assert begun == [True] * starts


def test_an_output_with_a_plan_may_need_none(
    begun: list[bool], photos: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "out" / "_job" / "plan").mkdir(parents=True)
    early.begin(job(photos(30), tmp_path / "out", compute={"pool": "local", "workers": 2}))
    assert begun == []


@pytest.mark.slow
def test_a_job_that_is_refused_leaves_no_process(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    process = command(tmp_path, job(missing, tmp_path / "out", compute={"pool": "local", "workers": 2}))
    process.wait(timeout=60)  # Not for the end of its output, which what it has started may hold open.
    own = os.environ["CNNBATCH_CACHE"]  # What the command started has inherited it, and nothing else has.
    left = [one for one in psutil.process_iter(["environ"]) if own in (one.info["environ"] or {}).values()]
    assert (process.returncode, left) == (2, [])
    assert str(missing) in process.communicate()[0]
