"""Means over rectangles: torch's adaptive_avg_pool2d bit by bit, of any picture and on both paths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cnnbatch.models import summed_areas
from cnnbatch.models.network import seeded
from cnnbatch.models.summed_areas import DeviceAreas, HostAreas, SummedAreas

Table = Callable[[Tensor], SummedAreas]
TABLES = pytest.mark.parametrize("table", [HostAreas, DeviceAreas], ids=["opencv", "torch"])


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    with seeded(seed):
        return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def pooled(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a picture as torch pools it, (h, w, 3)."""
    return adaptive_avg_pool2d(picture[None].float(), size)[0].permute(1, 2, 0)


@TABLES
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    wanted=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
@settings(max_examples=60)
def test_a_resized_picture_is_the_pooled_one(
    table: Table, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    picture = noise(*size)
    assert torch.equal(table(picture).resized(wanted), pooled(picture, wanted))


@TABLES
def test_rows_of_a_resized_picture_are_those_of_the_whole(table: Table) -> None:
    picture = noise(37, 23)
    sums = table(picture)
    whole = sums.resized((29, 17))
    assert torch.equal(
        torch.cat([sums.resized((29, 17), slice(0, 11)), sums.resized((29, 17), slice(11, 99))]), whole
    )


@TABLES
def test_crops_are_pooled_parts_of_a_picture(table: Table) -> None:
    picture = noise(60, 80)
    boxes = np.array([(0, 0, 80, 60), (3, 5, 4, 6), (10, 20, 57, 41), (79, 59, 80, 60), (0, 30, 24, 54)])
    found = table(picture).crops(boxes, 24)
    assert found.shape == (5, 24, 24, 3)
    for crop, (x1, y1, x2, y2) in zip(found, boxes, strict=True):
        assert torch.equal(crop, pooled(picture[:, y1:y2, x1:x2], (24, 24)))
    assert table(picture).crops(np.zeros((0, 4), np.int64), 24).shape == (0, 24, 24, 3)


@TABLES
def test_a_part_of_a_canvas_needs_no_copy(table: Table) -> None:
    canvas = noise(30, 40)
    assert torch.equal(table(canvas[:, :21, :33]).resized((9, 7)), pooled(canvas[:, :21, :33], (9, 7)))


def test_tables_of_bands_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise(50, 30)
    whole = HostAreas(picture).resized((20, 20))
    monkeypatch.setattr(summed_areas, "_MOST_SUMMED", 7 * 30)
    assert torch.equal(HostAreas(picture).resized((20, 20)), whole)


@pytest.mark.slow
@TABLES
def test_twenty_white_megapixels_are_white(table: Table) -> None:
    """Their sum is 5.1e9, which int32 does not hold, nor does it hold 2**32."""
    picture = torch.full((1, 1, 1), 255, dtype=torch.uint8).expand(3, 4000, 5000)
    sums = table(picture)
    assert bool((sums.resized((13, 16)) == 255).all())
    assert bool((sums.crops(np.array([(4000, 3000, 5000, 4000)]), 24) == 255).all())


def test_without_opencv_torch_makes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise(8, 8)
    assert isinstance(summed_areas.summed_areas(picture), HostAreas)
    monkeypatch.setattr(summed_areas, "find_spec", lambda name: None)
    assert isinstance(summed_areas.summed_areas(picture), DeviceAreas)
