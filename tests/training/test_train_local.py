"""Training in a process of this machine: the same as in this one, whatever happens to it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import to_yaml
from cnnbatch.launch import launch
from cnnbatch.training.local import trains_here
from tests import tiny

QUIET = RunOptions(quiet=True)
STILL = {"model": "tests.tiny:without_dropout"}
FROZEN = {"strategy": "head", "epochs": 3, "augment": {"colour": 0.2}}
LOCAL = {"pool": "local", "workers": 1, "device": "cpu", "cpus_per_worker": 1}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training in this process, on the pictures beside it."""
    folder = tmp_path_factory.mktemp("here")
    tiny.colours(folder / "colours", 30)
    inline = {**LOCAL, "pool": "inline"}
    launch(tiny.job(folder / "colours", folder / "out", FROZEN, task=STILL, compute=inline), QUIET)
    return folder / "out"


def faulty(here: Path, out: Path, fault: str, **train: Any) -> Any:
    """Return the same training in a process of its own."""
    flags = out.parent / "flags"
    flags.mkdir()
    task = {"name": "tests.faulty:Faulty", "fault": fault, "flags": str(flags), **STILL}
    return tiny.job(here.parent / "colours", out, {**FROZEN, **train}, task=task, compute=LOCAL)


def require_equal(out: Path, here: Path) -> None:
    found, expected = (load_file(folder / "model.safetensors") for folder in (out, here))
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "kill"])
def test_a_process_trains_what_this_one_does_though_it_is_killed(
    fault: str, here: Path, tmp_path: Path
) -> None:
    launch(faulty(here, tmp_path / "out", fault), QUIET)
    assert (tmp_path / "flags" / "killed").exists() == bool(fault)
    require_equal(tmp_path / "out", here)


@pytest.mark.slow
def test_a_process_that_is_lost_too_often_ends_the_training_which_goes_on_later(
    here: Path, tmp_path: Path
) -> None:
    spec = faulty(here, tmp_path / "out", "kill", max_failures=0)
    with pytest.raises(EnvironmentFault, match="the process that trains was lost: it was ended by SIGKILL"):
        launch(spec, QUIET)
    launch(spec, QUIET)
    require_equal(tmp_path / "out", here)


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_the_last_checkpoint(here: Path, tmp_path: Path) -> None:
    out, spec = tmp_path / "out", faulty(here, tmp_path / "out", "slow")
    (tmp_path / "job.yaml").write_text(to_yaml(spec))
    command = [sys.executable, "-m", "cnnbatch", "run", str(tmp_path / "job.yaml")]
    checkpoints, patience = out / "_job" / "training" / "checkpoints", time.monotonic() + 240
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        try:
            while not any(checkpoints.glob("0*.pt")):
                assert time.monotonic() < patience, "no checkpoint was written"
                time.sleep(0.05)
            below = psutil.Process(first.pid).children(recursive=True)
        finally:
            first.kill()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "going on at epoch" in again.stderr
    assert below
    assert not [process for process in below if process.is_running()]
    require_equal(out, here)
    found, expected = (pq.read_table(folder / "metrics.parquet")["loss"] for folder in (out, here))
    assert found.equals(expected)
    assert json.loads((out / "model.json").read_text())["classes"] == ["blue", "green", "red"]


def test_one_worker_trains_here_and_more_on_ray() -> None:
    assert trains_here(Compute(workers=1))
    assert trains_here(Compute(pool="local"))
    assert not trains_here(Compute(workers=2))
    assert not trains_here(Compute(pool="ray", workers=1))
    with pytest.raises(UserError, match=r"compute.workers: expected 1 with compute.pool=local, got 2"):
        trains_here(Compute(pool="local", workers=2))


def test_a_cluster_that_is_named_trains_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.inference.driver.pools.cluster_address", lambda: "10.0.0.1:6379")
    assert not trains_here(Compute(workers=1))
