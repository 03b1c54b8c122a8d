"""Least certain regions against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.images.uncertainty import SHARE, Region, least_certain


def brute_force(cells: np.ndarray, size: tuple[int, int], count: int) -> list[Region]:
    """Look at all windows one by one, on a picture of pixels."""
    rows, columns = cells.shape
    heights, widths = (
        [part * side // parts for part in range(parts + 1)]
        for side, parts in zip(size, cells.shape, strict=True)
    )
    picture = np.zeros(size)
    for row in range(rows):
        for column in range(columns):
            picture[heights[row] : heights[row + 1], widths[column] : widths[column + 1]] = cells[row, column]
    tall, wide = max(1, rows // SHARE), max(1, columns // SHARE)
    boxes = [
        (widths[column], heights[row], widths[column + wide], heights[row + tall])
        for row in range(rows - tall + 1)
        for column in range(columns - wide + 1)
    ]
    found: list[Region] = []
    while len(found) < count and boxes:
        means = [picture[y1:y2, x1:x2].mean() for x1, y1, x2, y2 in boxes]
        best = boxes[int(np.argmin(means))]
        found.append(Region(float(min(means)), best))
        boxes = [one for one in boxes if not _overlap(one, best)]
    return found


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@given(st.integers(0, 1000), st.integers(1, 32), st.integers(1, 32), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_regions_are_those_of_brute_force(seed: int, rows: int, columns: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(rows, 3 * rows + 1)), int(rng.integers(columns, 3 * columns + 1))
    cells = rng.random((rows, columns)).astype(np.float32)
    found, expected = least_certain(cells, size, count), brute_force(cells, size, count)
    assert [one.box_xyxy for one in found] == [one.box_xyxy for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected])


def test_a_small_picture_has_no_more_regions_than_fit() -> None:
    found = least_certain(np.array([[0.5]], np.float32), (1, 1), 4)
    assert found == [Region(0.5, (0, 0, 1, 1))]
