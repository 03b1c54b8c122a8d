"""Small faces: squares whose red says that they are one, and whose green and blue say whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cnnbatch.models import FaceDetector, FaceEmbedder

RED = 200
LANDMARKS = ((0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75))
"""Where (x, y) the five points lie in a face, as parts of its sides."""
PEOPLE = {"ann": (40, 200), "bob": (200, 40), "cat": (120, 120)}
"""The green and blue of a person."""
SIDE = 16
Face = tuple[str, int, int, int]
"""Who, and the left, the top and the side in pixels."""


def picture(size: tuple[int, int], faces: Sequence[Face]) -> NDArray[np.uint8]:
    """Return a dark picture (height, width, 3) with faces."""
    pixels = np.full((*size, 3), 20, np.uint8)
    for who, left, top, side in faces:
        pixels[top : top + side, left : left + side] = (RED, *PEOPLE[who])
    return pixels


def write(folder: Path, pictures: Mapping[str, Sequence[Face]], size: tuple[int, int] = (60, 100)) -> Path:
    """Write pictures as PNG files; return the folder."""
    for name, faces in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(size, faces)).save(folder / name)
    return folder


class Squares(nn.Module):
    """Finds the squares, the largest first; the larger the surer."""

    def __init__(self) -> None:
        super().__init__()
        self.min_size, self.min_score = 4, 0.0
        self.max_faces: int | None = None

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return the faces of each picture."""
        return [
            self._found(one[0, :height, :width].cpu().numpy())
            for one, (height, width) in zip(pictures, sizes.tolist(), strict=True)
        ]

    def _found(self, red: NDArray[np.uint8]) -> dict[str, Tensor]:
        count, _, stats, _ = cv2.connectedComponentsWithStats((red == RED).astype(np.uint8))
        boxes = [
            (left, top, left + width, top + height)
            for left, top, width, height, _ in stats[1:count].tolist()
            if min(width, height) >= self.min_size
        ]
        boxes.sort(key=lambda box: box[0] - box[2])
        scores = [(box[2] - box[0]) / 100 for box in boxes]
        kept = [place for place, score in enumerate(scores) if score >= self.min_score][: self.max_faces]
        found = torch.tensor([boxes[place] for place in kept], dtype=torch.float32).reshape(-1, 4)
        sides = found[:, None, 2:] - found[:, None, :2]
        return {
            "boxes": found,
            "scores": torch.tensor([scores[place] for place in kept]),
            "keypoints": found[:, None, :2] + torch.tensor(LANDMARKS) * sides - 0.5,
        }


class MeanColour(nn.Module):
    """The mean colour of a chip, its green and blue."""

    def forward(self, chips: Tensor) -> Tensor:
        """Return (N, 2) of chips (N, 3, H, W)."""
        found: Tensor = chips.mean((2, 3))[:, 1:]
        return found


class LeftColour(nn.Module):
    """The mean colour of a chip's left half, its green and blue."""

    def forward(self, chips: Tensor) -> Tensor:
        """Return (N, 2) of chips (N, 3, H, W)."""
        found: Tensor = chips[..., : SIDE // 2].mean((2, 3))[:, 1:]
        return found


def squares() -> FaceDetector:
    """Return the detector of squares."""
    return FaceDetector(Squares(), weights="squares", library="tiny 1")


class Looking(Squares):
    """Finds the squares; of those with more than `ASIDE` pixels the nose lies to the right."""

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Return the faces of each picture."""
        found = super().forward(pictures, sizes)
        for faces in found:
            sides = faces["boxes"][:, 2] - faces["boxes"][:, 0]
            faces["keypoints"][:, 2, 0] += torch.where(sides > ASIDE, 0.15 * sides, 0)
        return found


ASIDE = 26


def looking() -> FaceDetector:
    """Return the detector of squares that look aside."""
    return FaceDetector(Looking(), weights="looking", library="tiny 1")


def mean_colour() -> FaceEmbedder:
    """Return the embedder of colours."""
    template = tuple((SIDE * x - 0.5, SIDE * y - 0.5) for x, y in LANDMARKS)
    return FaceEmbedder(
        MeanColour(),
        template,
        (SIDE, SIDE),
        2,
        (0, 0, 0),
        (100, 100, 100),
        weights="colour",
        library="tiny 1",
    )


def unit_colour() -> FaceEmbedder:
    """Return the same with embeddings of length 1, for no commercial use."""
    return replace(
        mean_colour(), normalisation="l2", metric="cosine", allows_commercial_use=False, licence="research"
    )


def unit_left_colour() -> FaceEmbedder:
    """Return the embedder of left halves' colours, with embeddings of length 1."""
    return replace(unit_colour(), module=LeftColour())
