"""By which conventions face detectors in ONNX files give their faces: YuNet's and insightface's.

All that is here is on the CPU, of one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.ops import nms

from cnnbatch.models.onnx.module import Outputs
from cnnbatch.models.resizing import Size


class Candidates(NamedTuple):
    """What a network says of each of its cells: boxes (R, 4), scores (R,), landmarks (R, 5, 2), in pixels."""

    boxes: Tensor
    scores: Tensor
    points: Tensor


class FaceHead(Protocol):
    """The convention of a family of networks; ``min_score`` is the threshold that it is published with."""

    @property
    def min_score(self) -> float:
        """The least score of a face."""

    def pixels(self, picture: Tensor) -> Tensor:
        """Return what the network takes for a picture, uint8 RGB (1, 3, H, W)."""

    def candidates(self, outputs: Outputs, size: Size) -> Candidates:
        """Return what the outputs for an input of ``size`` say; ValueError where they are others."""

    def suppressed(self, found: Candidates) -> Tensor:
        """Return which candidates stay, the best first."""


def _cells(size: Size, stride: int, times: int = 1) -> Tensor:
    """Return the (x, y) of each cell of a map, float32 (R, 2), row by row, ``times`` each."""
    rows, columns = (torch.arange(side // stride) for side in size)
    grid = torch.cartesian_prod(rows, columns).flip(1)
    return grid.repeat_interleave(times, 0).float()


def _table(outputs: Outputs, name: str, rows: int, columns: int) -> Tensor:
    """Return an output as (rows, columns); ValueError where it has other numbers."""
    value = outputs.get(name)
    if value is None or value.shape[-1] != columns or value.numel() != rows * columns:
        raise ValueError(f"{name} of ({rows}, {columns})")
    return value.reshape(rows, columns)


@dataclass(frozen=True)
class YuNet:
    """YuNet as OpenCV reads it: pixels in BGR, offsets from cells, the square root of two probabilities.

    Source: FaceDetectorYN in https://github.com/opencv/opencv (modules/objdetect/src/face_detect.cpp), whose
    default thresholds these are.
    """

    min_score: float = 0.9
    strides: tuple[int, ...] = (8, 16, 32)

    def pixels(self, picture: Tensor) -> Tensor:
        """Return BGR from 0 to 255."""
        return picture.flip(1).float()

    def candidates(self, outputs: Outputs, size: Size) -> Candidates:
        """Return a candidate a cell."""
        levels = [self._level(outputs, size, stride) for stride in self.strides]
        return Candidates(*map(torch.cat, zip(*levels, strict=True)))

    def _level(self, outputs: Outputs, size: Size, stride: int) -> Candidates:
        cells = _cells(size, stride)
        face, objectness, offsets, points = (
            _table(outputs, f"{name}_{stride}", len(cells), columns)
            for name, columns in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
        )
        sides = offsets[:, 2:].exp() * stride
        corners = (cells + offsets[:, :2]) * stride - sides / 2
        return Candidates(
            boxes=torch.cat([corners, corners + sides], 1),
            scores=(face.clamp(0, 1) * objectness.clamp(0, 1)).sqrt().squeeze(1),
            points=(points.reshape(-1, 5, 2) + cells[:, None]) * stride,
        )

    def suppressed(self, found: Candidates) -> Tensor:
        """Compare whole numbers, as OpenCV does: corners and sides without their fractions."""
        corners = found.boxes[:, :2].trunc()
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).trunc()
        return _suppressed(torch.cat([corners, corners + sides], 1), found.scores, 0.3)


@dataclass(frozen=True)
class InsightFace:
    """RetinaFace and SCRFD as insightface exports them: distances from anchors, in strides.

    The outputs come by kind (scores, boxes, landmarks), and each kind by stride. ``names`` are those of the
    outputs in the file's order.

    Source: https://github.com/deepinsight/insightface (python-package, model_zoo/retinaface.py and scrfd.py).
    """

    names: tuple[str, ...]
    min_score: float = 0.5

    @property
    def strides(self) -> tuple[int, ...]:
        """Three levels with two anchors a cell, or five with one."""
        return (8, 16, 32) if len(self.names) == 9 else (8, 16, 32, 64, 128)

    def pixels(self, picture: Tensor) -> Tensor:
        """Return RGB from -1 to 1."""
        return (picture.float() - 127.5) / 128

    def candidates(self, outputs: Outputs, size: Size) -> Candidates:
        """Return a candidate an anchor."""
        levels = [self._level(outputs, size, number) for number in range(len(self.strides))]
        return Candidates(*map(torch.cat, zip(*levels, strict=True)))

    def _level(self, outputs: Outputs, size: Size, number: int) -> Candidates:
        levels, stride = len(self.strides), self.strides[number]
        centres = _cells(size, stride, times=2 if levels == 3 else 1) * stride
        scores, distances, points = (
            _table(outputs, self.names[number + levels * kind], len(centres), columns)
            for kind, columns in enumerate((1, 4, 10))
        )
        low, high = centres - distances[:, :2] * stride, centres + distances[:, 2:] * stride
        return Candidates(
            boxes=torch.cat([low, high], 1),
            scores=scores.squeeze(1),
            points=centres[:, None] + points.reshape(-1, 5, 2) * stride,
        )

    def suppressed(self, found: Candidates) -> Tensor:
        """Count a box's last pixel as its own, as insightface does."""
        return _suppressed(found.boxes + torch.tensor([0, 0, 1, 1]), found.scores, 0.4)


def _suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return which boxes (R, 4) no better one overlaps by an IoU above the threshold, the best first.

    In float32 an IoU of exactly 3 to 10 would be above 0.3.
    """
    kept: Tensor = nms(boxes.double(), scores.double(), threshold)
    return kept
