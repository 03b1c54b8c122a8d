"""Faces' poses against rotations of a head, blur against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.images.face_quality import HEAD, blur, pose


def seen(yaw: float, pitch: float, roll: float, scale: float, x: float, y: float) -> np.ndarray:
    """Return the landmarks (1, 5, 2) of a head that looks so, from far away."""
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turned = HEAD @ (about_z @ about_y @ about_x).T
    points: np.ndarray = scale * turned[:, :2] + (x, y)
    return points[None]


ANGLE = st.floats(-80, 80)


@given(ANGLE, ANGLE, st.floats(-179, 179), st.floats(0.05, 20), st.floats(-500, 500), st.floats(-500, 500))
def test_pose_is_the_rotation_of_the_head(
    yaw: float, pitch: float, roll: float, scale: float, x: float, y: float
) -> None:
    assert np.allclose(pose(seen(yaw, pitch, roll, scale, x, y)), (yaw, pitch, roll), atol=0.01)


def test_the_signs_of_a_pose() -> None:
    eyes_and_mouth = [(40, 50), (80, 50), (60, 72), (45, 95), (75, 95)]
    faces = np.array([eyes_and_mouth] * 4, float)
    faces[1, 2] += (8, 0)  # The nose to the right.
    faces[2, 2] += (0, -8)  # Up.
    faces[3, 1:5:3] += (0, 12)  # The right eye, and the right corner of the mouth, down.
    straight, right, up, tilted = pose(faces)
    assert abs(straight[[0, 2]]).max() < 0.01
    assert right[0] > 10
    assert up[1] - straight[1] > 10
    assert tilted[2] > 5


def test_points_that_are_one_have_no_pose() -> None:
    assert np.isnan(pose(np.full((2, 5, 2), 3.0))).all()
    assert pose(np.zeros((0, 5, 2))).shape == (0, 3)


def test_blur_is_scikit_images() -> None:
    measure = pytest.importorskip("skimage.measure")
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (10, 12, 3))
    for chip in (
        draw.integers(0, 256, (40, 31, 3), np.uint8),
        coarse.repeat(12, 0).repeat(9, 1).astype(np.uint8),
        np.linspace(0, 255, 30 * 40 * 3).reshape(30, 40, 3).astype(np.uint8),
    ):
        assert blur(chip) == pytest.approx(measure.blur_effect(chip, channel_axis=-1), abs=1e-4)


def test_blur_of_one_colour_is_not_known() -> None:
    assert np.isnan(blur(np.full((20, 20, 3), 7, np.uint8)))
    assert np.isnan(blur(np.full((2, 1, 3), 7, np.uint8)))
