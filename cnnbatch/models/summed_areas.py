"""Means over rectangles of a picture in constant time, from its summed-area table; exact to the last bit.

Source: Crow 1984, "Summed-area tables for texture mapping", https://doi.org/10.1145/800031.808600. The
rectangles are the cells of torch's ``adaptive_avg_pool2d``, whose results these are: cell i of n in a length
of m goes from floor(i m / n) to ceil((i + 1) m / n), so that neighbours may share a pixel.

Tables are kept modulo 2**32. A difference of entries is exact nevertheless, since no cell has more than
8 megapixels; the table itself overflows from 8 white megapixels on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]

_MOST_SUMMED = (2**31 - 1) // 255  # pixels whose sum is below 2**31, whatever they are


class Cells(NamedTuple):
    """Where the cells of a side start, and where they end (exclusive); both (..., n)."""

    starts: Indices
    ends: Indices

    @property
    def lengths(self) -> Indices:
        """How many pixels each has."""
        return self.ends - self.starts


def cells(lengths: Indices | int, count: int) -> Cells:
    """Return ``count`` cells of each of ``lengths`` (...): (..., count) from 0 on."""
    whole, place = np.asarray(lengths, np.int64)[..., None], np.arange(count, dtype=np.int64)
    return Cells(place * whole // count, -(-(place + 1) * whole // count))


class SummedAreas(ABC):
    """The summed-area table of one picture, uint8 (3, H, W)."""

    size: tuple[int, int]

    def resized(self, size: tuple[int, int], rows: slice = slice(None)) -> Tensor:
        """Return some rows of the picture at ``size`` (h, w), float32 (rows, w, 3), values from 0 to 255."""
        down, across = (cells(own, wanted) for own, wanted in zip(self.size, size, strict=True))
        down = Cells(down.starts[rows], down.ends[rows])
        return self._means(self._grid(down, across), down.lengths, across.lengths[None])

    def crops(self, boxes: Indices, side: int) -> Tensor:
        """Return parts of the picture at ``side`` x ``side``, float32 (K, side, side, 3).

        ``boxes`` (K, 4) are x1, y1, x2, y2 in pixels, the last two exclusive, inside of the picture.
        """
        x1, y1, x2, y2 = boxes.T
        down, across = cells(y2 - y1, side), cells(x2 - x1, side)
        at = [
            Cells(one.starts + first[:, None], one.ends + first[:, None])
            for one, first in ((down, y1), (across, x1))
        ]
        return self._means(self._crops(*at), down.lengths, across.lengths[:, None])

    def _means(self, sums: Tensor, down: Indices, across: Indices) -> Tensor:
        """Divide sums (..., h, w, 3) by their cells' pixels: ``down`` (..., h) times ``across`` (..., 1, w).

        By one after the other, as adaptive_avg_pool2d does, which rounds twice.
        """
        rows = sums.flatten(-2)  # At full width, so that no step is of three numbers only.
        for divisor in (down[..., None], np.repeat(across, 3, -1)):
            rows.div_(self._to_device(divisor.astype(np.float32)))
        return sums

    @abstractmethod
    def _grid(self, down: Cells, across: Cells) -> Tensor:
        """Return the sums of cells (h,) x (w,), float32 (h, w, 3)."""

    @abstractmethod
    def _crops(self, down: Cells, across: Cells) -> Tensor:
        """Return the sums of cells (K, side) x (K, side), float32 (K, side, side, 3)."""

    @abstractmethod
    def _to_device(self, numbers: NDArray[Any]) -> Tensor:
        """Return numbers where the sums are."""


def summed_areas(picture: Tensor) -> SummedAreas:
    """Return the table of a picture, uint8 (3, H, W), where the picture lies.

    On the CPU OpenCV makes it where it is installed, seventy times as fast as torch; the sums are equal.
    """
    if picture.device.type == "cpu" and find_spec("cv2"):
        return HostAreas(picture)
    return DeviceAreas(picture)


class HostAreas(SummedAreas):
    """A table in NumPy, made by OpenCV.

    It has a fourth channel of zeros: NumPy gathers elements of 16 bytes, which are read as complex128, at
    four times the speed of elements of 12.
    """

    def __init__(self, picture: Tensor) -> None:
        import cv2

        height, width = self.size = picture.shape[1], picture.shape[2]
        planes = [*picture.numpy(), np.zeros((height, width), np.uint8)]
        merged = cv2.merge(planes)
        at_once = max(1, _MOST_SUMMED // width)
        if height <= at_once:
            self._sums: NDArray[np.int32] = cv2.integral(merged)
            return
        self._sums = np.zeros((height + 1, width + 1, 4), np.int32)
        for top in range(0, height, at_once):
            part = cv2.integral(merged[top : top + at_once])[1:]
            np.add(part, self._sums[top], out=self._sums[top + 1 : top + 1 + at_once])

    def _grid(self, down: Cells, across: Cells) -> Tensor:
        rows = _as_elements(self._sums[down.ends] - self._sums[down.starts])
        return _colours(_as_sums(rows.take(across.ends, 1)).sub_(_as_sums(rows.take(across.starts, 1))))

    def _crops(self, down: Cells, across: Cells) -> Tensor:
        elements, width = _as_elements(self._sums).reshape(-1), self._sums.shape[1]
        bottom, top = (one[:, :, None] * width for one in (down.ends, down.starts))
        right, left = (one[:, None, :] for one in (across.ends, across.starts))
        sums = _as_sums(elements.take(bottom + right))
        for corner in (bottom + left, top + right):
            sums.sub_(_as_sums(elements.take(corner)))
        sums.add_(_as_sums(elements.take(top + left)))
        return _colours(sums.flatten(0, 1)).view(*sums.shape[:-1], 3)

    def _to_device(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers)


def _as_elements(sums: NDArray[np.int32]) -> NDArray[np.complex128]:
    found: NDArray[np.complex128] = sums.view(np.complex128)[..., 0]
    return found


def _as_sums(elements: NDArray[np.complex128]) -> Tensor:
    return torch.from_numpy(elements[..., None].view(np.int32))


def _colours(sums: Tensor) -> Tensor:
    """Return sums (h, w, 4) without their fourth channel, float32; OpenCV takes a fifth of torch's time."""
    import cv2

    if not sums.numel():
        return torch.zeros(*sums.shape[:-1], 3)
    return torch.from_numpy(cv2.cvtColor(sums.float().numpy(), cv2.COLOR_BGRA2BGR))


class DeviceAreas(SummedAreas):
    """A table in torch, on any device."""

    def __init__(self, picture: Tensor) -> None:
        self.size = picture.shape[1], picture.shape[2]
        table = picture.permute(1, 2, 0).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
        self._sums = torch.nn.functional.pad(table, (0, 0, 1, 0, 1, 0))

    def _grid(self, down: Cells, across: Cells) -> Tensor:
        rows = self._sums[self._to_device(down.ends)] - self._sums[self._to_device(down.starts)]
        return (rows[:, self._to_device(across.ends)] - rows[:, self._to_device(across.starts)]).float()

    def _crops(self, down: Cells, across: Cells) -> Tensor:
        ends, starts = (
            (self._to_device(y)[:, :, None], self._to_device(x)[:, None, :])
            for y, x in ((down.ends, across.ends), (down.starts, across.starts))
        )
        left, top = self._sums[ends[0], starts[1]], self._sums[starts[0], ends[1]]
        return (self._sums[ends] - left - top + self._sums[starts]).float()

    def _to_device(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self._sums.device)
