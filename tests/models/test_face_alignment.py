"""Similarity transforms against scikit-image's, chips against OpenCV's, and where templates have a face."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.models import face_alignment
from cnnbatch.models.face_alignment import (
    ARCFACE,
    TEMPLATES,
    chips,
    dlib_template,
    sampled_chips,
    similarities,
)

Points = NDArray[np.float64]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return a smooth random picture (3, H, W), channels last in memory."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)


def faces(count: int, seed: int = 0, side: float = 60.0) -> torch.Tensor:
    """Return landmarks (count, 5, 2) of turned and noisy faces."""
    rng = np.random.default_rng(seed)
    angles, scales = rng.uniform(-3.1, 3.1, count), rng.uniform(0.3, 1.5, count) * side / 112
    turns = scales * np.exp(1j * angles)
    places = np.array(ARCFACE.points) @ [1, 1j] - (56 + 56j)
    centres = rng.uniform(20, 90, (count, 2)) @ [1, 1j]
    moved = places * turns[:, None] + centres[:, None] + rng.normal(0, 1, (count, 5, 2)) @ [1, 1j]
    return torch.from_numpy(np.stack([moved.real, moved.imag], -1)).float()


def skimage_transform(points: Points, template: Any) -> Points:
    transform = pytest.importorskip("skimage.transform", reason="scikit-image, whose Umeyama is the oracle")
    found = transform.SimilarityTransform.from_estimate(points, np.array(template))
    matrix: Points = found.params[:2]
    return matrix


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_transforms_are_scikit_images(name: str) -> None:
    landmarks, template = faces(20), TEMPLATES[name].points
    found = similarities(landmarks, template)
    assert found.dtype == torch.float64
    for points, matrix in zip(landmarks.double().numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(matrix, skimage_transform(points, template), rtol=1e-9, atol=1e-9)


@given(
    st.lists(st.tuples(st.integers(-300, 300), st.integers(-300, 300)), min_size=5, max_size=5, unique=True)
)
def test_transforms_of_any_points_are_scikit_images(points: list[tuple[int, int]]) -> None:
    """Points of which a reflection would be closer to the template are among them."""
    found = similarities(torch.tensor([points]), ARCFACE.points)[0].numpy()
    expected = skimage_transform(np.array(points, float), ARCFACE.points)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_landmarks_at_their_goals_stay() -> None:
    found = similarities(torch.tensor([ARCFACE.points]), ARCFACE.points)
    assert torch.allclose(found[0], torch.eye(2, 3, dtype=torch.float64), atol=1e-5)


def test_no_face_and_landmarks_in_one_point() -> None:
    assert similarities(torch.zeros(0, 5, 2), ARCFACE.points).shape == (0, 2, 3)
    found = similarities(torch.full((1, 5, 2), 7.0), ARCFACE.points)
    assert found.isnan().any()
    cut = chips(picture(40, 40), found, (12, 10))
    assert cut.shape == (1, 3, 12, 10)
    assert not cut.any()
    assert not sampled_chips(picture(40, 40)[None], torch.tensor([0]), found, (12, 10)).any()
    assert chips(picture(40, 40), found[:0], (12, 10)).shape == (0, 3, 12, 10)


def test_chips_are_opencvs() -> None:
    cv2 = face_alignment.opencv()
    whole = picture(120, 90)
    transforms = similarities(faces(10), ARCFACE.points)
    cut = chips(whole, transforms, ARCFACE.size)
    assert cut.dtype == torch.uint8
    assert cut.is_contiguous(memory_format=torch.channels_last)
    pixels = whole.permute(1, 2, 0).numpy()
    for chip, matrix in zip(cut, transforms.numpy(), strict=True):
        expected = cv2.warpAffine(pixels, matrix, (112, 112), flags=cv2.INTER_LINEAR)
        assert np.array_equal(chip.permute(1, 2, 0).numpy(), expected)
    assert torch.equal(chips(whole.contiguous(), transforms, ARCFACE.size), cut)


def test_a_chip_that_stays_has_the_pictures_own_pixels() -> None:
    whole = picture(30, 40)
    cut = chips(whole, torch.eye(2, 3, dtype=torch.float64)[None], (20, 50))
    assert torch.equal(cut[0, :, :, :40], whole[:, :20])
    assert not cut[0, :, :, 40:].any()  # black outside


@pytest.mark.parametrize("make", [picture, lambda h, w: torch.randint(0, 256, (3, h, w), dtype=torch.uint8)])
def test_sampled_chips_are_within_a_level(make: Callable[[int, int], torch.Tensor]) -> None:
    """Also of noise: places are rounded as OpenCV rounds them."""
    pictures = torch.stack([make(120, 90), make(120, 90)])
    transforms = similarities(faces(12), ARCFACE.points)
    places = torch.arange(12) % 2
    sampled = sampled_chips(pictures, places, transforms, ARCFACE.size)
    for chip, place, matrix in zip(sampled, places, transforms, strict=True):
        [expected] = chips(pictures[place], matrix[None], ARCFACE.size)
        assert (chip.int() - expected.int()).abs().max() <= 1
    assert sampled.dtype == torch.uint8
    assert sampled.float().std() > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_sampled_chips_on_a_gpu() -> None:
    pictures, places = torch.stack([picture(120, 90)] * 2), torch.arange(12) % 2
    transforms = similarities(faces(12), ARCFACE.points)
    expected = sampled_chips(pictures, places, transforms, ARCFACE.size)
    found = sampled_chips(pictures.cuda(), places.cuda(), transforms.cuda(), ARCFACE.size)
    assert (found.cpu().int() - expected.int()).abs().max() <= 1


def test_dlibs_template_shrinks_with_its_padding() -> None:
    whole = np.array(dlib_template(0.0).points)
    assert np.allclose(whole, np.array(face_alignment.DLIB_POINTS) * 150 - 0.5)
    padded = np.array(dlib_template(0.25).points)
    assert np.allclose(padded, (whole + 0.5 + 0.25 * 150) / 1.5 - 0.5)
    assert TEMPLATES["dlib"] == dlib_template(face_alignment.DLIB_PADDING)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_show_a_face(name: str) -> None:
    template = TEMPLATES[name]
    left_eye, right_eye, nose, left_mouth, right_mouth = template.points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert all(0 < x < template.size[1] and 0 < y < template.size[0] for x, y in template.points)


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'")
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'cnnbatch\[faces\]'"):
        face_alignment.opencv()
