"""Faces in one pose: similarity transforms from landmarks to a template, and the chips that they cut.

A chip is sampled bilinearly, black outside the picture, by OpenCV's ``warpAffine`` on the CPU and in batches
on a GPU. Neither smooths before it shrinks, as insightface does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnbatch.errors import UserError
from cnnbatch.models.face_embedder import Template

Size = tuple[int, int]


@dataclass(frozen=True)
class ChipTemplate:
    """Where the five landmarks lie, in pixels, in chips of a ``size`` (height, width)."""

    points: Template
    size: Size


ARCFACE = ChipTemplate(
    (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ),
    (112, 112),
)
"""What insightface trains ArcFace on (its ``face_align.py``)."""

FACENET = ChipTemplate(
    ((49.91, 64.12), (115.78, 62.74), (84.21, 92.09), (55.08, 117.59), (113.85, 116.41)), (160, 160)
)
"""Means of MTCNN's landmarks in facenet-pytorch's crops with the margin 14 of its evaluation on LFW.

Measured on 300 training pictures of LFW. The publisher crops MTCNN's box with that margin, leaves heads as
they are turned, and stretches the box to a square, by 1 / 0.754 in width on average. Here a face is turned
upright and keeps its proportions, at the scale that is nearest to those crops by least squares. What that
costs published weights has not been measured, since no package has them.
"""

DLIB_PADDING = 0.2
"""What dlib's chips have on each side beside the face, as a part of the face's side.

dlib's own code takes 0.25. With MTCNN's landmarks 0.2 separated the people of LFW's training pictures better.
"""

DLIB_POINTS: Template = (
    (0.2364, 0.2175),
    (0.7769, 0.2178),
    (0.5086, 0.5328),
    (0.2625, 0.8016),
    (0.7445, 0.8024),
)
"""Means of MTCNN's landmarks in the square that dlib's chips show without padding, as parts of its side.

Measured on 300 training pictures of LFW: dlib's predictor of 5 points (CC0) says where a chip lies, MTCNN
where its landmarks are in it.
"""

DLIB_SIDE = 150


def dlib_template(padding: float = DLIB_PADDING) -> ChipTemplate:
    """Return where MTCNN's landmarks lie in dlib's chips, 150 x 150 pixels.

    dlib counts from the corner of a chip's first pixel, and this package from its centre.
    """
    scale = DLIB_SIDE / (1 + 2 * padding)
    points = tuple(((padding + x) * scale - 0.5, (padding + y) * scale - 0.5) for x, y in DLIB_POINTS)
    return ChipTemplate(points, (DLIB_SIDE, DLIB_SIDE))


TEMPLATES = {"arcface": ARCFACE, "dlib": dlib_template(), "facenet": FACENET}
"""By the names that a job has for them."""


def similarities(landmarks: Tensor, template: Template) -> Tensor:
    """Return the transforms that bring landmarks (K, P, 2) closest to a template of P points.

    They are (K, 2, 3) float64. Each is a rotation, one scale and a translation, without a reflection, by
    least squares (Umeyama 1991, equations 40 to 42, which in two dimensions are a division of complex
    numbers). Where all landmarks of a face are one point, there is none, and it is NaN.
    """
    points = landmarks.double()
    goals = torch.tensor(template, dtype=torch.float64, device=points.device)
    centres, goal = points.mean(dim=1, keepdim=True), goals.mean(dim=0)
    moved, wanted = points - centres, goals - goal  # [K, P, 2], [P, 2]
    spread = moved.square().sum(dim=(1, 2))
    cosine = (moved * wanted).sum(dim=(1, 2)) / spread
    sine = (moved[..., 0] * wanted[:, 1] - moved[..., 1] * wanted[:, 0]).sum(dim=1) / spread
    rotations = torch.stack([cosine, -sine, sine, cosine], dim=1).reshape(-1, 2, 2)  # [K, 2, 2], scaled
    offsets = goal.reshape(2, 1) - rotations @ centres.transpose(1, 2)
    return torch.cat([rotations, offsets], dim=2)


def opencv() -> Any:
    """Return the module cv2.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"faces need OpenCV, which cannot be loaded here ({error})\n"
            "  what to do: pip install 'cnnbatch[faces]'"
        ) from error
    return cv2


def chips(picture: Tensor, transforms: Tensor, size: Size) -> Tensor:
    """Cut the chips of one picture, uint8 (3, H, W), on the CPU: (K, 3, *size) uint8, channels last.

    What it gives is ``cv2.warpAffine``'s, linear and black outside; a transform that is not finite gives a
    black chip. A picture that does not lie channels-last is copied once.
    """
    cv2 = opencv()
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    matrices: NDArray[np.float64] = transforms.numpy()
    cut = np.zeros((len(matrices), *size, pixels.shape[2]), np.uint8)
    for chip, matrix in zip(cut, matrices, strict=True):
        if np.isfinite(matrix).all():
            cv2.warpAffine(pixels, matrix, size[::-1], dst=chip, flags=cv2.INTER_LINEAR)
    return torch.from_numpy(cut).permute(0, 3, 1, 2)


_STEPS = 32
"""OpenCV rounds where a value is taken from to a 32nd of a pixel,"""
_FINER = 32
"""what it adds up for it to a 32nd of that."""


def sampled_chips(pictures: Tensor, places: Tensor, transforms: Tensor, size: Size) -> Tensor:
    """Cut chips of several pictures at a time, on any device: (K, 3, *size) uint8.

    Args:
        pictures: (N, 3, H, W) uint8; what a canvas has beside its picture is taken as part of it.
        places: (K,) int64, which picture each chip is of.
        transforms: (K, 2, 3) float64, from the picture to the chip.
        size: (height, width).

    The values differ from those of `chips` by at most 1: places are rounded as OpenCV rounds them.
    """
    usable = transforms.isfinite().all(dim=2).all(dim=1)  # [K]
    rows, columns, row_parts, column_parts = _sources(_inverses(transforms, usable), size)  # [K, h, w]
    flat = pictures.movedim(1, -1).reshape(-1, pictures.shape[1])  # [N * H * W, 3]
    total = torch.zeros(*rows.shape, pictures.shape[1], device=pictures.device)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < pictures.shape[2]) & (x >= 0) & (x < pictures.shape[3])
        weight = (row_parts if down else 1 - row_parts) * (column_parts if right else 1 - column_parts)
        index = (places.reshape(-1, 1, 1) * pictures.shape[2] + y) * pictures.shape[3] + x
        total += (weight * inside)[..., None] * flat[index.where(inside, 0)]
    total *= usable.reshape(-1, 1, 1, 1)
    return total.round().to(torch.uint8).permute(0, 3, 1, 2)


def _inverses(transforms: Tensor, usable: Tensor) -> Tensor:
    """Return the transforms (K, 2, 3) from the chip to the picture; any number where there is none."""
    scaled = transforms.where(
        usable[:, None, None], torch.eye(2, 3, dtype=torch.float64, device=transforms.device)
    )
    a, b, x, c, d, y = scaled.flatten(1).unbind(1)
    determinant = a * d - b * c
    matrices = torch.stack([d, -b, -c, a], dim=1).reshape(-1, 2, 2) / determinant[:, None, None]
    offsets = -matrices @ torch.stack([x, y], dim=1)[..., None]
    return torch.cat([matrices, offsets], dim=2)


def _sources(inverses: Tensor, size: Size) -> Sequence[Tensor]:
    """Return for each pixel of each chip the row and the column that it begins in, and which parts of them.

    In whole numbers, as ``warpAffine`` counts: what a column and what a row contributes is rounded each to
    1/1024 of a pixel, their sum to 1/32.
    """
    steps = _STEPS * _FINER
    y, x = (torch.arange(side, dtype=torch.float64, device=inverses.device) for side in size)
    found = []
    for along in (1, 0):  # y, then x
        by_column = (inverses[:, along, 0, None] * x * steps).round()
        by_row = ((inverses[:, along, 1, None] * y + inverses[:, along, 2, None]) * steps).round()
        sums = (by_row[:, :, None] + by_column[:, None, :]).clamp(-(2.0**40), 2.0**40).long()
        found.append((sums + _FINER // 2) // _FINER)
    rows, columns = found
    parts = [(one % _STEPS).float() / _STEPS for one in found]
    return rows // _STEPS, columns // _STEPS, *parts
