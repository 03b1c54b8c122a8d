"""Training on Ray: the same steps whoever takes them; the loss of worker, driver or node costs no result."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from cnnbatch.config.compute import Compute
from cnnbatch.errors import EnvironmentFault
from cnnbatch.inference.run import RunOptions
from cnnbatch.job import to_yaml
from cnnbatch.launch import launch
from cnnbatch.training.driver import group_for
from tests import tiny
from tests.clusters import cluster_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
QUIET = RunOptions(quiet=True)
STILL = {"model": "tests.tiny:without_dropout"}
FROZEN = {"strategy": "head", "epochs": 4, "augment": {"colour": 0.2}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a Ray of one node with four CPUs and four pretended GPUs, whatever Ray was up before."""
    with cluster_of({"num_cpus": 4, "num_gpus": 4}) as cluster:
        yield cluster


def on_ray(photos: Path, out: Path, flags: Path, fault: str, train: dict[str, Any], **compute: Any) -> Any:
    flags.mkdir(exist_ok=True)
    task = {"name": "tests.faulty:Faulty", "fault": fault, "flags": str(flags), **STILL}
    settings = {"pool": "ray", "device": "cpu", **compute}
    return tiny.job(photos, out, train, task=task, compute=settings)


def losses(out: Path) -> list[float]:
    found: Any = pq.read_table(out / "metrics.parquet")["loss"].to_pylist()
    return [*found]


def test_one_worker_and_four_take_the_same_steps_each_on_a_device_of_its_own(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder, flags = tiny.colours(tmp_path / "colours", 40), tmp_path / "flags"
    launch(tiny.job(folder, tmp_path / "alone", FROZEN, task=STILL), QUIET)
    spec = on_ray(folder, tmp_path / "four", flags, "", FROZEN, workers=4, gpus_per_worker=1.0)
    launch(spec, QUIET)
    assert sorted(path.read_text() for path in flags.glob("device-*")) == ["0", "1", "2", "3"]
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "four"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, four[name], atol=1e-4), name


def test_a_killed_worker_is_replaced_and_the_result_is_that_of_an_unbroken_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tiny.colours(tmp_path / "colours", 40)
    for fault in ("kill", "none"):
        flags = tmp_path / f"flags-{fault}"
        launch(on_ray(folder, tmp_path / fault, flags, fault, FROZEN, workers=2), QUIET)
    assert (tmp_path / "flags-kill" / "killed").exists()
    assert losses(tmp_path / "kill") == pytest.approx(losses(tmp_path / "none"), abs=1e-6)
    killed, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("kill", "none"))
    assert all(torch.allclose(tensor, killed[name], atol=1e-6) for name, tensor in whole.items())


def test_a_killed_driver_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    folder, out, flags = tiny.colours(tmp_path / "colours", 40), tmp_path / "out", tmp_path / "flags"
    spec = on_ray(folder, out, flags, "slow", FROZEN, workers=2)
    (tmp_path / "job.yaml").write_text(to_yaml(spec))
    command = [sys.executable, "-m", "cnnbatch", "run", str(tmp_path / "job.yaml")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        try:
            wait_for(out / "_job" / "training" / "checkpoints")
        finally:
            first.kill()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "going on at epoch" in again.stderr
    launch(tiny.job(folder, tmp_path / "alone", FROZEN, task=STILL), QUIET)
    assert losses(out) == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)
    assert json.loads((out / "model.json").read_text())["classes"] == ["blue", "green", "red"]


def wait_for(folder: Path) -> None:
    ends = time.monotonic() + 120
    while not (folder.is_dir() and any(folder.glob("0*.pt"))):
        assert time.monotonic() < ends, "no checkpoint was written"
        time.sleep(0.05)


def test_more_workers_than_there_is_room_for_is_said(cluster: Cluster) -> None:
    with pytest.raises(EnvironmentFault, match=r"9 workers were asked for, and there is room for 4"):
        group_for(Compute(workers=9))
    group = group_for(Compute(device="cpu", cpus_per_worker=2))
    assert (group.least, group.most, group.resources) == (1, 2, {"CPU": 2.0})


def test_the_loss_of_a_node_leaves_the_others_training(cluster: Cluster, tmp_path: Path) -> None:
    folder, out, flags = tiny.colours(tmp_path / "colours", 40), tmp_path / "out", tmp_path / "flags"
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    spec = on_ray(folder, out, flags, "slow", FROZEN, workers={"min": 1, "max": 3}, cpus_per_worker=2)
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(launch, spec, QUIET)
        wait_for(out / "_job" / "training" / "checkpoints")
        cluster.remove_node(second, allow_graceful=False)
        training.result(timeout=240)
    launch(tiny.job(folder, tmp_path / "alone", FROZEN, task=STILL), QUIET)
    assert losses(out) == pytest.approx(losses(tmp_path / "alone"), abs=1e-4)
