"""From logits to classes: what two plain interpolations and a largest give, in bands of any height."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from cnnbatch.models import pixel_classes as module
from cnnbatch.models.pixel_classes import CELLS, PixelClasses, WholeLogits, pixel_classes
from cnnbatch.models.resizing import Canvas

side = st.integers(1, 70)


def logits(seed: int, classes: int, height: int, width: int) -> Tensor:
    return 5 * torch.randn((classes, height, width), generator=torch.Generator().manual_seed(seed))


def plain(views: list[Tensor], canvas: Canvas) -> Tensor:
    """Return the mean probabilities (C, H, W), by interpolating everything at once."""
    (top, left), (height, width) = canvas.corner, canvas.inside
    total = torch.zeros(())
    for view in views:
        whole = _bilinear(view, canvas.shape)[:, top : top + height, left : left + width]
        total = total + _bilinear(whole, canvas.original).softmax(0)
    return total / len(views)


def _bilinear(values: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]


def assert_same(found: PixelClasses, probabilities: Tensor) -> None:
    best = probabilities.topk(min(2, len(probabilities)), dim=0).values
    clear = best[0] - best[-1] > 1e-4
    assert torch.equal(found.numbers[clear].long(), probabilities.argmax(0)[clear])
    assert float(found.confidence) == pytest.approx(float(best[0].mean()), abs=1e-4)


@given(st.tuples(side, side), st.tuples(side, side), st.tuples(side, side), st.integers(1, 4000), st.data())
@settings(max_examples=80, deadline=None)
def test_any_sizes_give_what_plain_interpolation_gives(
    given_size: tuple[int, int],
    shape: tuple[int, int],
    original: tuple[int, int],
    band: int,
    data: Any,
) -> None:
    inside = data.draw(st.integers(1, shape[0])), data.draw(st.integers(1, shape[1]))
    corner = data.draw(st.integers(0, shape[0] - inside[0])), data.draw(st.integers(0, shape[1] - inside[1]))
    canvas = Canvas(shape, corner, inside, original)
    views = [logits(seed, 3, *given_size) for seed in range(data.draw(st.integers(1, 3)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module._BAND_VALUES, "cpu", band)
        found = pixel_classes([WholeLogits(one) for one in views], 3, canvas, "cpu")
    assert found.numbers.dtype == torch.uint8
    assert_same(found, plain(views, canvas))


def test_equal_sizes_are_bit_equal() -> None:
    given_logits = logits(0, 7, 40, 50)
    found = pixel_classes([WholeLogits(given_logits)], 7, Canvas((40, 50), (0, 0), (40, 50), (40, 50)), "cpu")
    assert torch.equal(found.numbers.long(), given_logits.argmax(0))


@pytest.mark.parametrize("size", [(64, 96), (45, 70), (5, 40), (1, 1)])
def test_cells_are_means_over_the_parts_of_the_picture(size: tuple[int, int]) -> None:
    canvas = Canvas(size, (0, 0), size, size)
    given_logits = logits(1, 4, *size)
    found = pixel_classes([WholeLogits(given_logits)], 4, canvas, "cpu")
    largest = given_logits.softmax(0).amax(0)
    rows, columns = (min(CELLS, one) for one in size)
    assert found.cells.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            part = largest[
                row * size[0] // rows : (row + 1) * size[0] // rows,
                column * size[1] // columns : (column + 1) * size[1] // columns,
            ]
            assert float(found.cells[row, column]) == pytest.approx(float(part.mean()), abs=1e-5)


def test_more_classes_than_a_byte_names_are_wider_numbers() -> None:
    given_logits = logits(2, 300, 6, 8)
    canvas = Canvas((6, 8), (0, 0), (6, 8), (6, 8))
    found = pixel_classes([WholeLogits(given_logits)], 300, canvas, "cpu")
    assert found.numbers.dtype == torch.int32
    assert torch.equal(found.numbers.long(), given_logits.argmax(0))
    assert pixel_classes([WholeLogits(given_logits[:255])], 255, canvas, "cpu").numbers.dtype == torch.uint8


def test_rows_are_asked_for_from_the_top_and_once_done_never_again() -> None:
    class Watched(WholeLogits):
        asked: list[tuple[int, int]] = []

        def rows(self, first: int, last: int) -> Tensor:
            self.asked.append((first, last))
            return super().rows(first, last)

    watched = Watched(logits(3, 2, 20, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module._BAND_VALUES, "cpu", 100)
        pixel_classes([watched], 2, Canvas((80, 16), (0, 0), (77, 16), (100, 10)), "cpu")
    firsts = [first for first, _ in watched.asked]
    assert firsts == sorted(firsts)
    assert len(firsts) == 20
    assert watched.asked[-1][1] == 20
    assert max(last - first for first, last in watched.asked) <= 4
