"""Boundaries by the distances of all pairs of pixels, and bands as Boundary IoU's authors take them."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, nan
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnbatch.metrics.boundaries import band, boundary_f1

CLASSES = 3
Map = NDArray[Any]


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), coarse=st.integers(2, 9))
def test_boundaries_as_by_distances_of_all_pairs(seed: int, coarse: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(20, 40)), int(rng.integers(200, 600)))  # A tolerance of 1.5 to 4.5 pixels.
    said, true = (blocks(rng, shape, coarse) for _ in range(2))
    true = np.where(rng.random(shape) < 0.97, np.roll(said, rng.integers(0, 6), 1), true)
    found = boundary_f1(said, true, CLASSES)
    assert found.tolist() == pytest.approx(
        [by_distance(said, true, one) for one in range(CLASSES)], nan_ok=True
    )


def blocks(rng: np.random.Generator, shape: tuple[int, int], coarse: int, classes: int = CLASSES + 1) -> Map:
    small = rng.integers(0, classes, (coarse, coarse)).astype(np.uint8)
    rows, columns = (np.arange(size) * coarse // size for size in shape)
    made: Map = small[np.ix_(rows, columns)]
    return made


def by_distance(said: Map, true: Map, one: int) -> float:
    """Return the boundary F1 of a class by the distances of all pairs of boundary pixels."""
    first, second = (np.argwhere(outline(each == one)) for each in (said, true))
    if not len(first) or not len(second):
        return 0.0 if len(second) else nan
    apart = np.hypot(*np.moveaxis(first[:, None] - second, -1, 0))
    near = apart < 0.0075 * hypot(*true.shape)
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded


def test_many_classes_at_once_are_as_each_by_itself() -> None:
    rng = np.random.default_rng(3)
    true = blocks(rng, (300, 400), 14, 150).astype(np.uint16)  # A tolerance of 3.75 pixels.
    said = np.roll(true, (2, 3), (0, 1))
    found = boundary_f1(said, true, 150)
    assert np.isnan(found).sum() < 60  # More than 64 classes are there.
    for one in range(150):
        alone = boundary_f1((said == one).astype(np.uint8), (true == one).astype(np.uint8), 2)[1]
        assert found[one] == pytest.approx(alone, nan_ok=True)


def test_a_tall_map_is_as_its_parts() -> None:
    """The rows of a map are widened in parts: where these meet, nothing may be seen of it."""
    rng = np.random.default_rng(4)
    true = blocks(rng, (300, 24), 20)
    said = np.roll(true, 2, 0)
    found = boundary_f1(said, true, CLASSES)
    assert found.tolist() == pytest.approx([by_distance(said, true, one) for one in range(CLASSES)])


@pytest.mark.parametrize("shape", [(3, 600), (600, 3), (1, 900)])
def test_a_map_may_be_narrower_than_the_tolerance(shape: tuple[int, int]) -> None:
    true = blocks(np.random.default_rng(5), shape, 9)
    said = np.roll(true, (2, 1), (0, 1))
    found = boundary_f1(said, true, CLASSES)
    assert found.tolist() == pytest.approx([by_distance(said, true, one) for one in range(CLASSES)])


def test_the_tolerance_is_strict() -> None:
    truth = np.zeros((1200, 1600), np.uint8)  # 2000 pixels across: less than 15.
    said, near = truth.copy(), truth.copy()
    truth[600, 800] = said[600, 815] = near[609, 811] = 1  # At 15 pixels; at the root of 202.
    assert boundary_f1(said, truth, 2)[1] == 0
    assert boundary_f1(near, truth, 2)[1] == 1


def test_a_boundary_is_not_near_what_lies_beyond_an_edge() -> None:
    """The next row's first pixel is not beside this row's last, nor is the next class's first row below."""
    truth, said = np.full((300, 500), 2), np.full((300, 500), 2)  # A tolerance of 4.4 pixels.
    truth[50, 499], truth[299, 100], truth[0, 300] = 0, 0, 1
    said[51, 0], said[0, 100], said[299, 300] = 0, 1, 0
    assert boundary_f1(said, truth, 2).tolist() == [0, 0]


def mask_to_boundary(mask: NDArray[np.uint8], dilation_ratio: float = 0.02) -> NDArray[np.uint8]:
    """Return the inner boundary of a mask as the authors of Boundary IoU compute it.

    Written after ``mask_to_boundary`` of bowenc0221/boundary-iou-api, boundary_iou/utils/boundary_utils.py.
    """
    height, width = mask.shape
    dilation = max(1, round(dilation_ratio * float(np.sqrt(height**2 + width**2))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)
    return mask - np.asarray(eroded[1 : height + 1, 1 : width + 1], np.uint8)


SHAPES: Sequence[tuple[int, int]] = [(1, 1), (1, 40), (3, 5), (25, 49), (60, 80), (131, 397)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coarse", [1, 2, 7, 13])
def test_bands_are_the_boundaries_of_the_authors(shape: tuple[int, int], coarse: int) -> None:
    numbers = blocks(np.random.default_rng(coarse), shape, coarse)
    found = band(numbers)
    for one in range(CLASSES + 1):
        theirs = mask_to_boundary((numbers == one).astype(np.uint8))
        assert np.array_equal(found & (numbers == one), theirs > 0)


def test_bands_of_noise_are_the_boundaries_of_the_authors() -> None:
    rng = np.random.default_rng(5)
    numbers = np.where(rng.random((150, 200)) < 0.999, 0, rng.integers(0, 3, (150, 200))).astype(np.uint8)
    for one in range(3):
        theirs = mask_to_boundary((numbers == one).astype(np.uint8))
        assert np.array_equal(band(numbers) & (numbers == one), theirs > 0)
