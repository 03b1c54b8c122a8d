"""Alignment: transforms against scikit-image, chips against OpenCV."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.models import face_alignment
from cnnbatch.models.face_alignment import points_in, sampled, transforms_to
from cnnbatch.models.face_conventions import BOX_POINTS

TEMPLATE = ((38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2))
SIZE = (112, 96)


def aligned(picture: torch.Tensor, transforms: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the chips of one picture."""
    return face_alignment.aligned([picture], transforms, [len(transforms)], size)


def smooth(height: int, width: int) -> torch.Tensor:
    """Return a picture (3, height, width) whose neighbours are alike."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return torch.from_numpy(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)).permute(
        2, 0, 1
    )


@given(st.lists(st.floats(-200, 200), min_size=20, max_size=20))
def test_transforms_are_scikit_images(numbers: list[float]) -> None:
    transform = pytest.importorskip("skimage.transform")
    faces = np.array(numbers).reshape(2, 5, 2) + np.array(TEMPLATE)
    found = transforms_to(TEMPLATE, torch.from_numpy(faces)).numpy()
    for face, one in zip(faces, found, strict=True):
        reference = transform.SimilarityTransform.from_estimate(face, np.array(TEMPLATE))
        if np.linalg.norm(reference.params[:2, :2]) > 1e-3:  # Else any rotation is as good.
            assert np.allclose(one, reference.params[:2], atol=1e-6, rtol=1e-6)


def test_landmarks_in_one_point_give_no_numbers_that_are_none() -> None:
    found = transforms_to(TEMPLATE, torch.full((1, 5, 2), 7.0))
    assert bool(found.isfinite().all())
    for way in (aligned, sampled):
        assert way(smooth(64, 64), found, SIZE).shape == (1, *SIZE, 3)


def test_no_faces_have_no_transforms_whatever_made_them() -> None:
    for none in (torch.zeros(0, 5, 2), torch.from_numpy(np.zeros((0, 5, 2)))):  # NumPy's strides are 0.
        found = transforms_to(TEMPLATE, none)
        assert found.shape == (0, 2, 3)
        assert aligned(smooth(64, 64), found, SIZE).shape == (0, *SIZE, 3)


def test_a_face_that_lies_in_its_box_as_faces_do_is_cut_the_same_without_alignment() -> None:
    left, top, side = 30.0, 12.0, 50.0
    landmarks = (np.array([left, top]) + side * np.array(BOX_POINTS) - 0.5)[None]
    for box in (
        (30, 12, 80, 62),
        (36, 12, 74, 62),
        (30, 20, 80, 54),
    ):  # All have the same square around them.
        points = points_in(torch.tensor([box], dtype=torch.float32))
        assert np.allclose(points, landmarks)
        chips = [
            aligned(smooth(96, 112), transforms_to(TEMPLATE, one), SIZE)
            for one in (points, torch.from_numpy(landmarks))
        ]
        assert torch.equal(*chips)


def test_without_alignment_scale_follows_the_box_and_nothing_is_turned() -> None:
    boxes = torch.tensor([(10, 20, 50, 70), (110, 20, 210, 120)], dtype=torch.float32)  # Sides of 50 and 100.
    small, large = transforms_to(TEMPLATE, points_in(boxes)).numpy()
    scale = np.hypot(small[0, 0], small[1, 0])
    assert np.hypot(large[0, 0], large[1, 0]) == pytest.approx(scale / 2)
    assert abs(np.degrees(np.arctan2(small[1, 0], small[0, 0]))) < 0.5  # Templates are not quite even.
    centres = [one @ (x - 0.5, y - 0.5, 1) for one, x, y in ((small, 30, 45), (large, 160, 70))]
    assert np.allclose(*centres)
    assert points_in(torch.zeros(0, 4)).shape == (0, 5, 2)


def faces(scale: float) -> torch.Tensor:
    return (torch.tensor([TEMPLATE, TEMPLATE[::-1]]) * scale + torch.tensor([5.0, 9.0])).double()


def test_chips_are_opencvs() -> None:
    picture = smooth(200, 240)
    transforms = transforms_to(TEMPLATE, faces(1.6))
    found = aligned(picture, transforms, SIZE)
    for chip, one in zip(found.numpy(), transforms.numpy(), strict=True):
        expected = cv2.warpAffine(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), one, SIZE[::-1])
        assert np.array_equal(chip, expected)


def test_chips_of_several_pictures_come_one_after_the_other() -> None:
    """Of parts of canvases, too, whatever their order in memory."""
    canvases = [smooth(200, 240), noise(200, 240).contiguous(), smooth(230, 250)]
    pictures = [one[:, :190, :220] for one in canvases]
    transforms = [transforms_to(TEMPLATE, some) for some in (faces(1.6), faces(2.4)[:1], faces(1.2)[:0])]
    found = face_alignment.aligned(pictures, torch.cat(transforms), [2, 1, 0], SIZE)
    each = [
        aligned(picture.clone().contiguous(), some, SIZE)
        for picture, some in zip(pictures, transforms, strict=True)
    ]
    assert [len(one) for one in each] == [2, 1, 0]
    assert torch.equal(found, torch.cat(each))


def noise(height: int, width: int) -> torch.Tensor:
    """Return a picture (3, height, width) whose neighbours have nothing in common."""
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, height, width), np.uint8))


@pytest.mark.parametrize("make", [smooth, noise])
@pytest.mark.parametrize(("scale", "most"), [(0.4, 1), (1.7, 1), (2.2, 2), (7.3, 2)])
def test_sampled_chips_are_within_a_level(
    scale: float, most: int, make: Callable[[int, int], torch.Tensor]
) -> None:
    """Also of noise, and at the picture's edges: places are rounded as OpenCV rounds them."""
    picture = make(max(200, int(120 * scale)), max(240, int(130 * scale)))
    transforms = transforms_to(TEMPLATE, faces(scale))
    one, other = (way(picture, transforms, SIZE).int() for way in (aligned, sampled))
    assert int((one - other).abs().max()) <= most
    assert float(other.float().std()) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("scale", [0.4, 2.2])
def test_chips_on_a_gpu_are_those_of_the_cpu(scale: float) -> None:
    picture, transforms = noise(300, 320), transforms_to(TEMPLATE, faces(scale))
    found = aligned(picture.cuda(), transforms, SIZE).cpu().int()
    assert int((found - sampled(picture, transforms, SIZE).int()).abs().max()) <= 1


def test_a_large_face_is_averaged() -> None:
    noise = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 1120, 960), np.uint8))
    chip = aligned(noise, transforms_to(TEMPLATE, faces(8)[:1]), SIZE).float()
    assert float(chip[0, 20:90, 20:80].std()) < 20  # Of single pixels it is 74.


def test_where_a_large_face_lies_in_its_chip() -> None:
    picture = torch.zeros((3, 1300, 1000), dtype=torch.uint8)
    places = faces(10)[:1]  # At whole pixels.
    for x, y in places[0].round().int().tolist():
        picture[:, y - 8 : y + 9, x - 8 : x + 9] = 255
    (chip,) = aligned(picture, transforms_to(TEMPLATE, places), SIZE).numpy()
    for x, y in TEMPLATE:
        part = chip[int(y) - 4 : int(y) + 6, int(x) - 4 : int(x) + 6, 0].astype(float)
        rows, columns = np.mgrid[int(y) - 4 : int(y) + 6, int(x) - 4 : int(x) + 6]
        middle = (columns * part).sum() / part.sum(), (rows * part).sum() / part.sum()
        assert middle == pytest.approx((x, y), abs=0.1)


def test_no_faces_give_no_chips() -> None:
    none = transforms_to(TEMPLATE, torch.zeros(0, 5, 2))
    assert aligned(smooth(64, 64), none, SIZE).shape == (0, *SIZE, 3)
    assert sampled(smooth(64, 64), none, SIZE).shape == (0, *SIZE, 3)
