"""How a detector or a segmenter wants its pictures: resized, normalised and padded, one by itself.

A picture's padded shape follows from its own size alone, as when the reference is given one picture
at a time; so its boxes do not depend on the pictures beside it in a batch. The price: pictures of
other proportions don't share a batch, unless they are padded to few shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cnnbatch.types import Prepared

Size = tuple[int, int]
"""(height, width) in pixels."""

Colour = tuple[float, float, float]

_PROPORTIONS = (1.0, 4 / 3, 3 / 2)  # of most photographs, which then need no more padding than alone


@dataclass(frozen=True)
class Resizing:
    """The input of a detector or a segmenter.

    ``sides``: the shorter side becomes ``size[0]``, unless the longer would pass ``size[1]``.
    ``stretch``: to ``size`` (height, width), whatever the proportions. ``letterbox``: as large as
    fits into ``size``, in its middle. The result is padded to a multiple of ``divisor`` with
    ``fill``, at the bottom and the right; a letterbox all around. ``whole``: the picture as it is,
    in uint8, for a network that resizes and normalises itself; the other fields then say nothing.
    ``own``: its own size. ``multiples``: its own size but for each side, which becomes the next multiple of
    ``divisor``, so that nothing is padded. ``size`` says nothing of these two.
    ``rounding`` is that of a letterbox's sides; ``antialias`` smooths what is made smaller. Where there
    are ``shapes``, a picture is padded to the smallest of them that holds it.
    """

    fit: Literal["sides", "stretch", "letterbox", "whole", "own", "multiples"]
    size: Size
    mean: Colour = (0.0, 0.0, 0.0)
    std: Colour = (1.0, 1.0, 1.0)
    divisor: int = 1
    fill: float = 0.0
    rounding: Literal["down", "nearest"] = field(default="down", repr=False)
    antialias: bool = field(default=False, repr=False)
    shapes: tuple[Size, ...] = field(default=(), repr=False)

    @property
    def varies(self) -> bool:
        """Whether inputs have several shapes."""
        return self.fit in ("sides", "whole", "own", "multiples")

    def with_few_shapes(self) -> Resizing:
        """Return the same with seven shapes at most, for networks to which every shape costs.

        Photographs of usual proportions stay as they are, 5 % of others' inputs is padding.
        """
        if self.fit != "sides":
            return self
        short, longest = min(self.size), self.size[1]
        sides = {min(ceil(short * proportion), longest) for proportion in _PROPORTIONS} | {longest}
        exact = {self._divisible((short, side)) for side in sides}
        return replace(self, shapes=tuple(sorted(exact | {(width, height) for height, width in exact})))

    def resized(self, size: Size) -> Size:
        """Return the (height, width) that a picture of ``size`` gets."""
        if self.fit == "stretch":
            return self.size
        if self.fit == "sides":  # The arithmetic of torchvision's GeneralizedRCNNTransform.
            scale = min(self.size[0] / min(size), self.size[1] / max(size))
            return max(1, floor(size[0] * scale)), max(1, floor(size[1] * scale))
        if self.fit in ("whole", "own"):
            return size
        if self.fit == "multiples":
            return self._divisible(size)
        if self.rounding == "nearest":  # The arithmetic of Ultralytics' LetterBox.
            scale = min(self.size[0] / size[0], self.size[1] / size[1])
            return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        # The arithmetic of Darknet's letterbox_image.
        if self.size[1] / size[1] < self.size[0] / size[0]:
            return max(1, size[0] * self.size[1] // size[1]), self.size[1]
        return self.size[0], max(1, size[1] * self.size[0] // size[0])

    def padded(self, resized: Size) -> Size:
        """Return the shape of the input that a picture of (height, width) ``resized`` lies in."""
        if self.fit == "letterbox":
            return self.size
        if self.fit == "whole":
            return resized
        holding = [shape for shape in self.shapes if shape[0] >= resized[0] and shape[1] >= resized[1]]
        return min(holding, key=lambda shape: shape[0] * shape[1], default=self._divisible(resized))

    def _divisible(self, shape: Size) -> Size:
        height, width = (ceil(side / self.divisor) * self.divisor for side in shape)
        return height, width

    def describe(self) -> str:
        """Return the fields as text, for the fingerprint; the last two only where they were changed."""
        nearest = ", sides rounded to the nearest" if self.rounding == "nearest" else ""
        return repr(self) + nearest + (", antialias" if self.antialias else "")


def prepare(pixels: Tensor, how: Resizing) -> Prepared:
    """Turn a whole picture, uint8 (3, H, W), into a float32 input (3, *padded).

    Bilinear, by default without antialiasing, as torchvision's detectors and Darknet resize. Channel by
    channel, so that a large picture exists in floats for a third only. Where ``how`` leaves pictures
    whole, they stay uint8.
    """
    if how.fit == "whole":
        return Prepared(pixels, (pixels.shape[1], pixels.shape[2]))
    height, width = target = how.resized((pixels.shape[1], pixels.shape[2]))
    shape = how.padded(target)
    centred = how.fit == "letterbox"
    top, left = ((shape[0] - height) // 2, (shape[1] - width) // 2) if centred else (0, 0)
    canvas = torch.full((3, *shape), how.fill)
    for channel in range(3):
        floats = pixels[channel].to(torch.float32).div_(255)[None, None]
        if floats.shape[2:] != target:
            floats = interpolate(
                floats, size=target, mode="bilinear", align_corners=False, antialias=how.antialias
            )
        part = canvas[channel, top : top + height, left : left + width]
        torch.div(floats[0, 0] - how.mean[channel], how.std[channel], out=part)
    return Prepared(canvas, target, (float(top), float(left)), height / pixels.shape[1])
