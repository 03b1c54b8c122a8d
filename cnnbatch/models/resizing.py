"""How a detector or a segmenter wants its pictures: resized, normalised and padded, one by itself.

A picture's padded shape follows from its own size alone, as when the reference is given one picture
at a time; so its boxes do not depend on the pictures beside it in a batch. The price: pictures of
other proportions don't share a batch, unless they are padded to few shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.types import Prepared

Size = tuple[int, int]
"""(height, width) in pixels."""

Colour = tuple[float, float, float]

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) of a part of an input, in pixels."""

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
    ``rounding`` is that of a letterbox's sides, ``exact`` that of ``sides``: the shorter gets its length,
    the longer is rounded down, as torchvision's ``Resize`` does. ``antialias`` smooths what is made smaller.
    Where there are ``shapes``, a picture is padded to the smallest of them that holds it.
    """

    fit: Literal["sides", "stretch", "letterbox", "whole", "own", "multiples"]
    size: Size = (0, 0)
    mean: Colour = (0.0, 0.0, 0.0)
    std: Colour = (1.0, 1.0, 1.0)
    divisor: int = 1
    fill: float = 0.0
    rounding: Literal["down", "nearest", "exact"] = field(default="down", repr=False)
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
        if self.fit == "sides" and self.rounding == "exact":
            return _exact(size, *self.size)
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

    def offset(self, resized: Size) -> Size:
        """Return where (top, left) in its input a picture of (height, width) ``resized`` begins."""
        if self.fit != "letterbox":
            return 0, 0
        shape = self.padded(resized)
        return (shape[0] - resized[0]) // 2, (shape[1] - resized[1]) // 2

    def _divisible(self, shape: Size) -> Size:
        height, width = (ceil(side / self.divisor) * self.divisor for side in shape)
        return height, width

    def describe(self) -> str:
        """Return the fields as text, for the fingerprint; the last two only where they were changed."""
        words = {"down": "", "nearest": ", sides rounded to the nearest", "exact": ", the shorter side exact"}
        return repr(self) + words[self.rounding] + (", antialias" if self.antialias else "")


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where in an input a picture lies, and how large the picture is itself.

    ``shape`` is the input's (height, width), ``corner`` the picture's (top, left) in it, ``inside`` its
    (height, width) there, ``original`` its own.
    """

    shape: Size
    corner: Size
    inside: Size
    original: Size

    @property
    def picture(self) -> Box:
        """The part of the input that is picture."""
        (top, left), (height, width) = self.corner, self.inside
        return top, left, top + height, left + width


def _exact(size: Size, shorter: int, longest: int) -> Size:
    """Return the size of which the shorter side is ``shorter``, or less where the longer would pass the most.

    The arithmetic of torchvision's ``Resize(shorter, max_size=longest)``.
    """
    short, long = shorter, int(shorter * max(size) / min(size))
    if long > longest:
        short, long = max(1, int(longest * short / long)), longest
    return (short, long) if size[0] <= size[1] else (long, short)


def prepare(pixels: Tensor, how: Resizing) -> Prepared:
    """Turn a whole picture, uint8 (3, H, W), into a float32 input (3, *padded).

    Bilinear, by default without antialiasing, as torchvision's detectors and Darknet resize. Channel by
    channel, so that a large picture exists in floats for a third only. Where ``how`` leaves pictures
    whole, they stay uint8.
    """
    if how.fit == "whole":
        return Prepared(pixels, (pixels.shape[1], pixels.shape[2]))
    height, width = target = how.resized((pixels.shape[1], pixels.shape[2]))
    top, left = how.offset(target)
    canvas = torch.full((3, *how.padded(target)), how.fill)
    for channel in range(3):
        floats = pixels[channel].to(torch.float32).div_(255)[None, None]
        if floats.shape[2:] != target:
            floats = interpolate(
                floats, size=target, mode="bilinear", align_corners=False, antialias=how.antialias
            )
        part = canvas[channel, top : top + height, left : left + width]
        torch.div(floats[0, 0] - how.mean[channel], how.std[channel], out=part)
    return Prepared(canvas, target, (float(top), float(left)), height / pixels.shape[1])


def prepare_bytes(pixels: Tensor, how: Resizing) -> Prepared:
    """Turn a whole picture, uint8 (3, H, W), into a uint8 input (3, *padded), to be normalised on the device.

    It is resized in uint8, as torchvision's presets for segmentation do, and lies where ``pixels`` do, in
    memory as (H, W, 3). What is no picture is 0, and the fill only once it is normalised; see `Normalized`.
    """
    size: Size = (pixels.shape[1], pixels.shape[2])
    target = how.resized(size)
    if target != size:
        pixels = transforms.resize_image(pixels, list(target), antialias=how.antialias)
    shape, (top, left) = how.padded(target), how.offset(target)
    canvas = torch.zeros((*shape, 3), dtype=torch.uint8, device=pixels.device)
    canvas[top : top + target[0], left : left + target[1]] = pixels.permute(1, 2, 0)
    return Prepared(canvas.permute(2, 0, 1), target, (float(top), float(left)), target[0] / size[0])


class Normalized:
    """Turns uint8 inputs of `prepare_bytes`, on any device, into the floats that `prepare` gives of them.

    Factors are repeated for a whole row of pixels: broadcast over the innermost three channels, the same
    arithmetic takes five times as long on a CPU.
    """

    def __init__(self, how: Resizing, device: str) -> None:
        std = torch.tensor(how.std)
        self._factor, self._shift = (1 / (255 * std)).to(device), (-torch.tensor(how.mean) / std).to(device)
        self._fill, self._device = how.fill, device

    def __call__(self, batch: Tensor, pictures: Sequence[Box]) -> Tensor:
        """Return a batch (N, 3, H, W) normalised, float32, channels-last.

        ``pictures`` are the parts that are picture, one an input; all else gets the fill.
        """
        count, _, height, width = batch.shape
        rows = batch.to(self._device, non_blocking=True).permute(0, 2, 3, 1).reshape(count, height, -1)
        factor, shift = self._factor.repeat(width), self._shift.repeat(width)
        floats = rows.to(torch.float32).mul_(factor).add_(shift)
        normalised = floats.view(count, height, width, 3)  # [N, H, W, 3]
        for one, (top, left, bottom, right) in zip(normalised, pictures, strict=True):
            one[:top], one[bottom:] = self._fill, self._fill
            one[:, :left], one[:, right:] = self._fill, self._fill
        return normalised.permute(0, 3, 1, 2)
