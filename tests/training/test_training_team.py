"""What workers that train together know of each other's images, and that they learn what one learns alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from cnnbatch.inference.run import RunOptions
from cnnbatch.launch import launch
from cnnbatch.training import local
from cnnbatch.training.distributed import Team
from cnnbatch.training.messages import TrainingMessage, TrainingOrder
from cnnbatch.training.worker import work
from tests.tasks import test_embed

WORKERS = 2


class Alone(Team):
    """A worker of several that hears nothing of the others: what it would send stays as it is."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_rows_of_all_workers_lie_in_the_order_of_their_ranks() -> None:
    rows = [torch.arange(6.0).view(3, 2), torch.zeros(1, 2), torch.full((2, 2), 9.0)]
    counts = torch.tensor([3.0, 0.0, 2.0])  # The second has no image, and computes with a spare one.
    found = [Alone(rank, 3).rows(own, counts) for rank, own in enumerate(rows)]
    together = sum(one.values for one in found)
    assert isinstance(together, torch.Tensor)
    assert together.tolist() == [*rows[0].tolist(), *rows[2].tolist()]
    assert [(one.first, one.count) for one in found] == [(0, 3), (3, 0), (3, 2)]


def train_as(rank: int, order: TrainingOrder, meeting: str, sent: Any) -> None:
    """Be one of two workers, each a process of its own; the first sends its messages, and None at the end."""
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS)
    work(order, Team(rank, WORKERS), "cpu", 1, sent.put)
    distributed.destroy_process_group()
    if rank == 0:
        sent.put(None)


def by_two(order: TrainingOrder) -> Iterator[TrainingMessage]:
    """Train in two processes that meet at a file, in place of `local.fit`."""
    spawn = multiprocessing.get_context("spawn")
    meeting, sent = Path(order.output.uri).parent / "meeting", spawn.Queue()
    processes = [
        spawn.Process(target=train_as, args=(rank, order, meeting.as_uri(), sent)) for rank in range(WORKERS)
    ]
    for process in processes:
        process.start()
    yield from iter(partial(sent.get, timeout=240), None)
    for process in processes:
        process.join(240)
        assert process.exitcode == 0


@pytest.mark.slow
def test_two_processes_learn_the_embeddings_that_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = test_embed.people(tmp_path / "people", 12, 4)
    train = {"epochs": 2, "batch": 10, "embedding": {"kind": "centre", "pictures": 2}, "strategy": "head"}
    fields = {"task": {"model": "tests.tiny:without_dropout"}, "lesson": True}
    launch(test_embed.job(photos, tmp_path / "one", train, **fields), RunOptions(quiet=True))
    monkeypatch.setattr(local, "fit", by_two)
    here = {"pool": "local", "workers": 1, "device": "cpu"}
    launch(test_embed.job(photos, tmp_path / "two", train, compute=here, **fields), RunOptions(quiet=True))
    alone, together = (pq.read_table(tmp_path / name / "metrics.parquet")["loss"] for name in ("one", "two"))
    assert together.to_pylist() == pytest.approx(alone.to_pylist(), abs=1e-5)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    shown = [test_embed.inside_of(tmp_path / name)["vectors"] for name in ("one", "two")]
    assert shown[0]["classes"] == shown[1]["classes"]
