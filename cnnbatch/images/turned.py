"""Pictures turned about their centre, whole, and the way back for what was found in them.

Degrees are clockwise. The turned picture is as large as it has to be to hold all of the upright one; what
lies beside that is black. Points count from the centre of the first pixel, boxes from its corner.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
"""(height, width) in pixels."""

_ROUNDING = 1e-6
"""Parts of a pixel by which a side may be exceeded before it takes one more."""


def turned(pixels: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) turned clockwise: bilinear, by multiples of 90 degrees without a change."""
    if degrees % 90 == 0:
        quarter: NDArray[np.uint8] = np.ascontiguousarray(np.rot90(pixels, -round(degrees / 90)))
        return quarter
    import cv2

    size: Size = (pixels.shape[0], pixels.shape[1])
    found = np.zeros((*turned_size(size, degrees), 3), np.uint8)
    cv2.warpAffine(pixels, transform(size, degrees), found.shape[1::-1], dst=found, flags=cv2.INTER_LINEAR)
    return found


def turned_size(size: Size, degrees: float) -> Size:
    """Return the size of a turned picture: that of the least upright box that holds it, in whole pixels."""
    height, width = np.abs(_rotation(degrees)) @ size
    return ceil(height - _ROUNDING), ceil(width - _ROUNDING)


def transform(size: Size, degrees: float) -> NDArray[np.float64]:
    """Return where points (x, y, 1) of a picture of ``size`` lie once it is turned, (2, 3)."""
    (height, width), (new_height, new_width) = size, turned_size(size, degrees)
    rotation = _rotation(degrees)
    before, after = ((np.array(sides) - 1) / 2 for sides in ((width, height), (new_width, new_height)))
    return np.column_stack([rotation, after - rotation @ before])


def points_back(points: NDArray[Any], size: Size, degrees: float) -> NDArray[np.float32]:
    """Return where points (..., 2) of a turned picture lie in the upright one, whose ``size`` is given."""
    there = transform(size, degrees)
    found: NDArray[np.float32] = ((points - there[:, 2]) @ there[:, :2]).astype(np.float32)
    return found


def boxes_back(boxes: NDArray[Any], size: Size, degrees: float) -> NDArray[np.float32]:
    """Return the least boxes (K, 4) of the upright picture that hold those of the turned one."""
    corners = np.stack([boxes[:, [x, y]] for x in (0, 2) for y in (1, 3)], axis=1) - 0.5  # [K, 4, 2]
    back = points_back(corners, size, degrees) + np.float32(0.5)
    found: NDArray[np.float32] = np.concatenate([back.min(axis=1), back.max(axis=1)], axis=1)
    return found


def _rotation(degrees: float) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
