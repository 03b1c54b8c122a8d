"""What the tests of trainings share: what an output holds, and a training that ends in its middle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from cnnbatch.inference.run import RunOptions
from cnnbatch.job import TrainJob
from cnnbatch.launch import launch
from cnnbatch.training.worker import Recorder


def model_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "model.json").read_text())
    return found


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "metrics.parquet").to_pylist()


class Killed(Exception):
    """Stands for the end of the process."""


def launch_twice(job: Callable[[], TrainJob], step: int) -> None:
    """Run a training that ends at ``step``, and go on with it."""
    taken = Recorder.step

    def dies(recorder: Recorder, row: Mapping[str, float]) -> None:
        taken(recorder, row)
        if row["step"] == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "step", dies)
        with pytest.raises(Killed):
            launch(job(), RunOptions(quiet=True))
    launch(job(), RunOptions(quiet=True))


def require_same(whole: Path, broken: Path) -> None:
    """Require the same weights, bit by bit, and the same losses."""
    expected, found = weights_of(whole), weights_of(broken)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    losses = [[row["loss"] for row in metrics_of(one)] for one in (whole, broken)]
    assert losses[0] == losses[1]
