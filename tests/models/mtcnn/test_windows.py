"""The boxes between MTCNN's networks: against facenet-pytorch's functions and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cnnbatch.models.mtcnn import windows
from cnnbatch.models.mtcnn.windows import Windows
from cnnbatch.models.network import seeded


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip(
        "facenet_pytorch.models.utils.detect_face", reason="facenet-pytorch is missing"
    )


def boxes_of(count: int, seed: int = 0, most: float = 100) -> Tensor:
    with seeded(seed):
        corners = torch.rand(count, 2) * most - 10
        return torch.cat([corners, corners + torch.rand(count, 2) * 60 + 1], 1)


def test_a_pyramid_starts_where_the_smallest_face_has_twelve_pixels() -> None:
    assert list(windows.scales((30, 60), 20)) == [0.6, 0.6 * 0.709]
    assert list(windows.scales((10, 10), 20)) == []
    assert list(windows.scales((20, 500), 20)) == [0.6]


@given(
    count=st.integers(1, 9),
    size=st.tuples(st.integers(12, 400), st.integers(12, 400)),
    pixels=st.integers(500, 30_000),
)
@settings(max_examples=60)
def test_passes_have_each_answer_once(count: int, size: tuple[int, int], pixels: int) -> None:
    rows = -(-(size[0] - 2) // 2) - 4
    seen = np.zeros((count, rows), np.int64)
    for pictures, answers in windows.passes(count, size, pixels):
        seen[pictures, answers] += 1
        assert windows.rows_of(answers).start == 2 * answers.start
        assert answers.stop < rows or windows.rows_of(answers).stop >= size[0]
    assert (seen == 1).all()


def test_squares_and_offsets_are_facenet_pytorchs(theirs: Any) -> None:
    boxes, offsets = boxes_of(50), boxes_of(50, 1) / 100
    torch.testing.assert_close(windows.squares(boxes), theirs.rerec(boxes.clone()), rtol=0, atol=0)
    torch.testing.assert_close(windows.moved(boxes, offsets), theirs.bbreg(boxes.clone(), offsets))


def test_pixels_are_facenet_pytorchs_and_none_outside(theirs: Any) -> None:
    boxes = boxes_of(200, most=150)
    found, covering = windows.pixels_of(boxes, torch.tensor([(70, 90)] * 200))
    y, ey, x, ex = theirs.pad(boxes, 90, 70)
    inside = (ey > y - 1) & (ex > x - 1)
    assert covering.tolist() == np.flatnonzero(inside).tolist()
    assert 0 < inside.sum() < 200
    np.testing.assert_array_equal(found.numpy(), np.stack([x - 1, y - 1, ex, ey], 1)[inside])


def test_boxes_that_are_no_numbers_cover_no_pixels() -> None:
    boxes = torch.tensor([[float("nan")] * 4, [0, 0, float("inf"), 9], [-1e30, -1e30, 1e30, 1e30]])
    found, covering = windows.pixels_of(boxes, torch.tensor([(7, 9)] * 3))
    assert covering.tolist() == [1, 2]
    assert found.tolist() == [[0, 0, 9, 7], [0, 0, 9, 7]]


def test_suppression_knows_its_pictures(theirs: Any) -> None:
    boxes, pictures = boxes_of(120), torch.arange(3).repeat_interleave(40)
    with seeded(2):
        scores = torch.rand(120)
    found = windows.suppressed_inside(Windows(boxes, scores, pictures), 0.7)
    expected = [
        index + 40 * one
        for one in range(3)
        for index in theirs.nms_numpy(
            *(a[40 * one : 40 * one + 40].numpy() for a in (boxes, scores)), 0.7, "Min"
        )
    ]
    assert found.tolist() == expected
    alone = windows.suppressed(Windows(boxes[:40], scores[:40], pictures[:40]), 0.5).tolist()
    assert windows.suppressed(Windows(boxes, scores, pictures), 0.5).tolist()[: len(alone)] == alone
    assert 0 < len(alone) < 40


def test_a_box_inside_another_goes() -> None:
    boxes = torch.tensor([[0, 0, 99, 99], [10, 10, 19, 19], [200, 0, 220, 20]]).float()
    pictures = torch.zeros(3, dtype=torch.int64)
    assert windows.suppressed_inside(Windows(boxes, torch.tensor([0.9, 0.8, 1]), pictures), 0.7).tolist() == [
        2,
        0,
    ]


def test_of_equal_scores_facenet_pytorchs_is_first(theirs: Any) -> None:
    boxes, scores = boxes_of(60), torch.ones(60)
    found = windows.suppressed_inside(Windows(boxes, scores, torch.zeros(60, dtype=torch.int64)), 0.7)
    assert found.tolist() == theirs.nms_numpy(boxes.numpy(), scores.numpy(), 0.7, "Min").tolist()


def test_of_windows_without_end_the_best_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_MOST", 10)
    boxes = torch.arange(40)[:, None] * 100 + torch.tensor([0, 0, 9, 9])
    scores = torch.arange(40).float()
    found = windows.suppressed(Windows(boxes.float(), scores, torch.zeros(40, dtype=torch.int64)), 0.5)
    assert found.tolist() == list(range(39, 29, -1))


def test_no_windows_are_none() -> None:
    none = windows.joined([])
    assert len(none) == len(windows.suppressed(none, 0.5)) == len(windows.suppressed_inside(none, 0.5)) == 0
