"""Training on Ray: the same steps whoever takes them; the loss of worker, driver or node costs no result."""

from __future__ import annotations

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
from cnnbatch.launch import launch
from cnnbatch.training.driver import group_for
from tests import tiny, tiny_maps
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a training in this process, on the pictures beside it."""
    folder = tmp_path_factory.mktemp("alone")
    tiny.colours(folder / "colours", 40)
    launch(tiny.job(folder / "colours", folder / "out", FROZEN, task=STILL), QUIET)
    return folder / "out"


def on_ray(alone: Path, out: Path, fault: str, **compute: Any) -> Any:
    """Return the same training on Ray; what its workers note is in the folder ``flags`` beside ``out``."""
    flags = out.parent / "flags"
    flags.mkdir()
    task = {"name": "tests.faulty:Faulty", "fault": fault, "flags": str(flags), **STILL}
    settings = {"pool": "ray", "device": "cpu", **compute}
    return tiny.job(alone.parent / "colours", out, FROZEN, task=task, compute=settings)


def losses(out: Path) -> list[float]:
    found: Any = pq.read_table(out / "metrics.parquet")["loss"].to_pylist()
    return [*found]


def require_alike(out: Path, alone: Path, tolerance: float) -> None:
    assert losses(out) == pytest.approx(losses(alone), abs=tolerance)
    found, expected = (load_file(folder / "model.safetensors") for folder in (out, alone))
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], atol=tolerance), name


def test_one_worker_and_four_take_the_same_steps_each_on_a_device_of_its_own(
    cluster: Cluster, alone: Path, tmp_path: Path
) -> None:
    launch(on_ray(alone, tmp_path / "out", "", workers=4, gpus_per_worker=1.0), QUIET)
    devices = (tmp_path / "flags").glob("device-*")
    assert sorted(path.read_text() for path in devices) == ["0", "1", "2", "3"]
    require_alike(tmp_path / "out", alone, 1e-4)


def wait_for(folder: Path) -> None:
    ends = time.monotonic() + 240
    while not (folder.is_dir() and any(folder.glob("0*.pt"))):
        assert time.monotonic() < ends, "no checkpoint was written"
        time.sleep(0.05)


def test_more_workers_than_there_is_room_for_is_said(cluster: Cluster) -> None:
    with pytest.raises(EnvironmentFault, match=r"asks for 9 workers, and there is room for 4"):
        group_for(Compute(workers=9))
    group = group_for(Compute(device="cpu", cpus_per_worker=2))
    assert (group.least, group.most, group.resources) == (1, 2, {"CPU": 2.0})


def test_the_loss_of_a_node_leaves_the_others_training(cluster: Cluster, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    spec = on_ray(alone, out, "slow", workers={"min": 1, "max": 3}, cpus_per_worker=2)
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(launch, spec, QUIET)
        wait_for(out / "_job" / "training" / "checkpoints")
        cluster.remove_node(second, allow_graceful=False)
        training.result(timeout=300)
    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)


def test_two_workers_have_the_loss_of_all_pixels_of_a_step(cluster: Cluster, tmp_path: Path) -> None:
    tiny_maps.folders(tmp_path / "made", 20, 4, 2)
    train = {"strategy": "head", "epochs": 3, "batch": 7, "loss": {"dice": 0.5, "focal": 0.2, "balance": 0.5}}
    launch(tiny_maps.job(tmp_path / "made", tmp_path / "alone", train), QUIET)
    on_two = {"pool": "ray", "device": "cpu", "workers": 2}
    launch(tiny_maps.job(tmp_path / "made", tmp_path / "out", train, compute=on_two), QUIET)
    require_alike(tmp_path / "out", tmp_path / "alone", 1e-4)


def test_relative_paths_mean_the_same_to_workers(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_maps.folders(tmp_path / "made", 12, 0, 0)
    monkeypatch.chdir(tmp_path)
    train = {"strategy": "head", "epochs": 2, "batch": 6}
    for out, compute in (("alone", {}), ("out", {"pool": "ray", "device": "cpu", "workers": 2})):
        source = {"url": "made/train", "truth": "made/trainannot"}
        launch(tiny_maps.job("", out, train, input=source, compute=compute), QUIET)
    require_alike(tmp_path / "out", tmp_path / "alone", 1e-4)
