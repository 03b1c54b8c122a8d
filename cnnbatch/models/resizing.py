"""How a detector wants its pictures: resized, normalised and padded, one picture by itself.

A picture's padded shape follows from its own size alone, as when the reference is given one picture
at a time; so its boxes do not depend on the pictures beside it in a batch. The price: pictures of
other proportions don't share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnnbatch.records import Prepared

Size = tuple[int, int]
"""(height, width) in pixels."""

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Resizing:
    """A detector's input.

    ``sides``: the shorter side becomes ``size[0]``, unless the longer would pass ``size[1]``.
    ``stretch``: to ``size`` (height, width), whatever the proportions. ``letterbox``: as large as
    fits into ``size``, in its middle. The result is padded to a multiple of ``divisor`` with
    ``fill``, at the bottom and the right; a letterbox all around.
    """

    fit: Literal["sides", "stretch", "letterbox"]
    size: Size
    mean: Colour = (0.0, 0.0, 0.0)
    std: Colour = (1.0, 1.0, 1.0)
    divisor: int = 1
    fill: float = 0.0

    def resized(self, size: Size) -> Size:
        """Return the (height, width) that a picture of ``size`` gets."""
        if self.fit == "stretch":
            return self.size
        if self.fit == "sides":  # The arithmetic of torchvision's GeneralizedRCNNTransform.
            scale = min(self.size[0] / min(size), self.size[1] / max(size))
            return max(1, floor(size[0] * scale)), max(1, floor(size[1] * scale))
        # The arithmetic of Darknet's letterbox_image.
        if self.size[1] / size[1] < self.size[0] / size[0]:
            return max(1, size[0] * self.size[1] // size[1]), self.size[1]
        return self.size[0], max(1, size[1] * self.size[0] // size[0])

    def padded(self, resized: Size) -> Size:
        """Return the shape of the input that a picture of (height, width) ``resized`` lies in."""
        if self.fit == "letterbox":
            return self.size
        height, width = (ceil(side / self.divisor) * self.divisor for side in resized)
        return height, width

    def describe(self) -> str:
        """Return the fields as text, for the fingerprint."""
        return repr(self)


def prepare(pixels: Tensor, how: Resizing) -> Prepared:
    """Turn a whole picture, uint8 (3, H, W), into a float32 input (3, *padded).

    Bilinear without antialiasing, as torchvision's detectors and Darknet resize. Channel by channel,
    so that a large picture exists in floats for a third only.
    """
    height, width = target = how.resized((pixels.shape[1], pixels.shape[2]))
    shape = how.padded(target)
    centred = how.fit == "letterbox"
    top, left = ((shape[0] - height) // 2, (shape[1] - width) // 2) if centred else (0, 0)
    canvas = torch.full((3, *shape), how.fill)
    for channel in range(3):
        floats = pixels[channel].to(torch.float32).div_(255)[None, None]
        if floats.shape[2:] != target:
            floats = interpolate(floats, size=target, mode="bilinear", align_corners=False)
        part = canvas[channel, top : top + height, left : left + width]
        torch.div(floats[0, 0] - how.mean[channel], how.std[channel], out=part)
    return Prepared(canvas, target, (float(top), float(left)), height / pixels.shape[1])
