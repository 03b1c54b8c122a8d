"""Turned pictures: sizes, pixels and the way back against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.images.face_quality import HEAD, pose
from cnnbatch.images.turned import boxes_back, points_back, transform, turned, turned_size

SIZE = (40, 60)
ANGLES = st.floats(-180, 180)


def there(points: np.ndarray, degrees: float) -> np.ndarray:
    """Return where points (N, 2) of a picture of `SIZE` lie in the turned one."""
    moved: np.ndarray = np.column_stack([points, np.ones(len(points))]) @ transform(SIZE, degrees).T
    return moved


def test_a_quarter_turn_is_clockwise_and_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    for degrees in (90, 180, -90, -180, 0):
        found = turned(pixels, degrees)
        assert found.shape[:2] == turned_size(SIZE, degrees)
        y, x = (axis.ravel() for axis in np.mgrid[: SIZE[0], : SIZE[1]])
        across, down = np.rint(there(np.column_stack([x, y]), degrees)).astype(int).T
        assert np.array_equal(found[down, across], pixels[y, x])
    assert np.array_equal(turned(pixels, 90)[0, -1], pixels[0, 0])  # The top left corner goes to the right.


@pytest.mark.parametrize(("degrees", "size"), [(45, (71, 71)), (30, (65, 72)), (-90, (60, 40)), (180, SIZE)])
def test_a_turned_picture_has_room_for_all_of_the_upright_one(degrees: float, size: tuple[int, int]) -> None:
    assert turned_size(SIZE, degrees) == size


@given(ANGLES)
def test_all_of_the_upright_picture_is_inside(degrees: float) -> None:
    corners = there(np.array([(x, y) for x in (-0.5, 59.5) for y in (-0.5, 39.5)]), degrees)
    height, width = turned_size(SIZE, degrees)
    assert (corners > -0.501).all()
    assert (corners < (width - 0.499, height - 0.499)).all()


@pytest.mark.parametrize("degrees", [15, 30, -77, 120])
def test_pixels_go_where_points_go(degrees: float) -> None:
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[10:13, 40:43] = 250
    found = turned(pixels, degrees)[..., 0].astype(float)
    y, x = np.mgrid[: found.shape[0], : found.shape[1]]
    centre = np.array([(found * axis).sum() / found.sum() for axis in (x, y)])
    assert np.allclose(centre, there(np.array([(41.0, 11.0)]), degrees)[0], atol=0.05)


@given(ANGLES, st.lists(st.tuples(st.floats(-10, 70), st.floats(-10, 70)), min_size=1, max_size=5))
def test_points_come_back(degrees: float, points: list[tuple[float, float]]) -> None:
    assert np.allclose(points_back(there(np.array(points), degrees), SIZE, degrees), points, atol=1e-3)


def test_boxes_come_back() -> None:
    upright = np.array([(5.0, 10.0, 25.0, 40.0)])
    assert np.allclose(boxes_back(np.array([(0.0, 5.0, 30.0, 25.0)]), SIZE, 90), upright)
    assert np.allclose(boxes_back(np.array([(35.0, 0.0, 55.0, 30.0)]), SIZE, 180), upright)
    assert boxes_back(np.zeros((0, 4)), SIZE, 30).shape == (0, 4)


@given(ANGLES)
def test_a_box_that_comes_back_is_the_least_that_holds_the_turned_one(degrees: float) -> None:
    (found,) = boxes_back(np.array([(20.0, 10.0, 36.0, 32.0)]), SIZE, degrees)
    cosine, sine = abs(np.cos(np.radians(degrees))), abs(np.sin(np.radians(degrees)))
    sides = found[2:] - found[:2]
    assert np.allclose(sides, (16 * cosine + 22 * sine, 16 * sine + 22 * cosine), atol=1e-3)
    centre = points_back(np.array([(27.5, 20.5)]), SIZE, degrees)[0] + 0.5
    assert np.allclose((found[:2] + found[2:]) / 2, centre, atol=1e-3)


@given(st.floats(-170, 170))
def test_a_turned_head_has_the_turn_as_its_roll(degrees: float) -> None:
    landmarks = HEAD[:, :2] / 4 + (30, 20)
    yaw, pitch, roll = pose(there(landmarks, degrees)[None])[0]
    assert np.allclose((yaw, pitch, roll), (0, 0, degrees), atol=0.01)
