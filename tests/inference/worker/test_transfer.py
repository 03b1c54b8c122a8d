"""How batches travel: their memory order, their outputs, and on a GPU that overlapping changes nothing."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnbatch.inference.worker.predictor import PredictFault
from cnnbatch.inference.worker.transfer import Direct, Overlapped, Transfer, split, stack, transfer_for
from cnnbatch.types import Prepared
from tests.inference.worker.test_predictor import Sums, items, predictor, require_same

CUDA = torch.cuda.is_available()
WAYS = [
    Direct,
    pytest.param(Overlapped, marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]),
]


def pictures(count: int, interleaved: bool) -> list[Prepared]:
    """Return inputs that lie in memory as (H, W, 3), or as (3, H, W)."""
    values = torch.arange(count * 3 * 4 * 5, dtype=torch.uint8)
    if interleaved:
        return [Prepared(one, (4, 5)) for one in values.view(count, 4, 5, 3).permute(0, 3, 1, 2)]
    return [Prepared(one, (4, 5)) for one in values.view(count, 3, 4, 5)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Any:
    transfer: Transfer = request.param()
    yield transfer
    transfer.close()


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_batch_keeps_the_memory_order_of_its_inputs(way: Transfer, interleaved: bool) -> None:
    prepared = pictures(3, interleaved)
    batch = way.bring(prepared)()
    assert batch.shape == (3, 3, 4, 5)
    order = torch.channels_last if interleaved else torch.contiguous_format
    assert batch.is_contiguous(memory_format=order)
    assert torch.equal(batch.cpu(), torch.stack([one.pixels for one in prepared]))


def test_outputs_come_to_the_host_one_an_input(way: Transfer) -> None:
    batch = way.bring(pictures(3, True))().float()
    sums, names = batch.sum((1, 2, 3)), ["a", "b", "c"]
    named = way.fetch({"sums": sums, "names": names})()
    assert [one["names"] for one in named] == names
    assert [one["sums"].device.type for one in named] == ["cpu"] * 3
    assert torch.equal(torch.stack([one["sums"] for one in named]), sums.cpu())
    assert [name for _, name in way.fetch((sums, names))()] == names


def test_a_dict_or_a_tuple_is_cut_by_input() -> None:
    first, second = torch.arange(6).view(3, 2), [10, 11, 12]
    assert [one["b"] for one in split({"a": first, "b": second})] == second
    assert [(one.tolist(), other) for one, other in split((first, second))] == [
        ([0, 1], 10),
        ([2, 3], 11),
        ([4, 5], 12),
    ]


def test_outputs_of_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        split({"a": torch.zeros(3), "b": [1, 2]})


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_where_nothing_can_overlap_batches_go_the_plain_way(device: str) -> None:
    assert isinstance(transfer_for(device), Direct)


@pytest.mark.parametrize("count", [1, 5])
def test_stacking_into_page_locked_memory_is_for_a_device_only(count: int) -> None:
    assert not stack(pictures(count, True)).is_pinned()


class OnDevice(Sums):
    """The same model on the GPU; a picture of ones breaks it, or holds more than the device has."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
        moved = batch.to("cuda", non_blocking=True)
        if self.fault == "memory" and len(batch) > 2:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        if self.fault == "raise" and bool((moved == 7).all((1, 2, 3)).any()):
            raise ValueError("planted")
        sums = moved.double().sum((1, 2, 3))
        if self.fault == "assert":
            far = (moved == 7).all((1, 2, 3)).long() * 10**6
            sums = sums + sums[far]
        return {"sum": sums, "count": [len(batch)] * len(batch)}


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("fault", ["", "memory"])
def test_overlapping_changes_no_output(tmp_path: Path, fault: str) -> None:
    windows = [items(range(start, start + 40)) for start in range(0, 400, 40)]
    for way in (Direct(), Overlapped()):
        here = predictor(tmp_path, OnDevice(fault), way, batch=8)
        require_same(windows, list(here.predict(0, windows)))
        here.close()


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_an_error_of_the_model_blames_its_own_batch(tmp_path: Path) -> None:
    here = predictor(tmp_path, OnDevice("raise"), Overlapped(), batch=4)
    with pytest.raises(PredictFault) as fault:
        list(here.predict(0, [items(range(20), marked={9})]))
    assert fault.value.positions == (8, 9, 10, 11)
    here.close()


def blamed_by_the_device(folder: str) -> tuple[int, ...]:
    """Have a kernel read far out of its tensor, which ends the use of CUDA in this process."""
    here = predictor(Path(folder), OnDevice("assert"), Overlapped(), batch=4)
    with pytest.raises(PredictFault) as fault:
        list(here.predict(0, [items(range(20), marked={9})]))
    return fault.value.positions


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_an_error_that_shows_late_blames_all_that_was_under_way(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        positions = process.submit(blamed_by_the_device, str(tmp_path)).result()
    assert {8, 9, 10, 11} <= set(positions) <= set(range(4, 16))
