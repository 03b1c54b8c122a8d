"""What happens to a picture between the decoder and the network.

Resizing works on uint8, so that four times fewer bytes travel to the device than in float32; against
torchvision's and timm's own transforms, which resize a Pillow image, less than one value of a hundred
differs, by one gray level (a quarter where the aspect changes, as the two directions are then rounded
in another order; of ten thousand, less than one by two levels).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.types import Prepared

Size = tuple[int, int]
Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
"""``nearest-exact`` takes the pixels that Pillow's nearest takes, ``nearest`` is half a pixel beside it."""

_STRETCHED = 16  # resized pictures of more squares than this are cut before, which bounds their memory


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How weights want their input; sizes are (height, width) in pixels, colours are fractions of 1.

    ``fit`` says what ``resize`` means: ``cover`` the least picture that covers it (an int: the
    shorter side gets this length), ``contain`` the largest picture inside it, bordered by ``mean``,
    ``squash`` exactly it. ``crop`` is then cut from the centre.
    """

    resize: int | Size = 256
    crop: Size = (224, 224)
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: Literal["cover", "contain", "squash"] = "cover"

    def describe(self) -> str:
        """Return all of it in one line, for the fingerprint."""
        return (
            f"resize {self.resize} {self.fit} {self.interpolation} antialias, crop {self.crop}, "
            f"mean {self.mean}, std {self.std}"
        )

    def resized(self, size: Size) -> Size:
        """Return what a picture of ``size`` is resized to."""
        height, width = size
        if isinstance(self.resize, int):  # torchvision cuts the longer side down, timm rounds below
            short, long = sorted(size)
            longer = int(self.resize * long / short)
            return (self.resize, longer) if height <= width else (longer, self.resize)
        if self.fit == "squash":
            return self.resize
        ratios = (height / self.resize[0], width / self.resize[1])
        ratio = max(ratios) if self.fit == "contain" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def decode_size(self, size: Size) -> Size | None:
        """Return the least size that still need not be enlarged, or None where ``size`` is no larger."""
        least = self.resized(size)
        if self.interpolation == "nearest-exact":  # Decoding smaller is a mean over pixels; this is a choice.
            return None
        return least if least[0] <= size[0] and least[1] <= size[1] and least != size else None


def prepare(pixels: Tensor, size: Size, how: Preprocessing) -> Prepared:
    """Resize and crop uint8 ``pixels`` (3, H, W) of an original of ``size`` to uint8 (3, *crop).

    The result lies where ``pixels`` do, in memory as (H, W, 3), as the channels-last network wants it.
    """
    target = how.resized(size)
    scale = target[0] / size[0]
    if target[0] * target[1] > _STRETCHED * how.crop[0] * how.crop[1]:
        pixels, target = _cut(pixels, target, how.crop)
    cropped, offset = _centre(_resized(pixels, target, how.interpolation), how)
    return Prepared(cropped, how.crop, offset, scale)


def _resized(pixels: Tensor, target: Size, interpolation: Interpolation) -> Tensor:
    if interpolation == "nearest-exact":
        rows, columns = (
            _nearest(*sides).to(pixels.device) for sides in zip(pixels.shape[1:], target, strict=True)
        )
        return pixels[:, rows[:, None], columns]
    mode = InterpolationMode(interpolation)
    resized: Tensor = transforms.resize_image(pixels, list(target), interpolation=mode, antialias=True)
    return resized


def _nearest(have: int, want: int) -> Tensor:
    """Return which of ``have`` pixels Pillow takes for each of ``want``; it adds up in doubles, as here."""
    step = have / want
    steps = np.full(want, step)
    steps[0] = step / 2
    return torch.from_numpy(np.minimum(steps.cumsum().astype(np.int64), have - 1))


def _centre(resized: Tensor, how: Preprocessing) -> tuple[Tensor, tuple[float, float]]:
    """Cut or border to ``crop`` as torchvision does; the offset is that of the picture's corner (y, x)."""
    top, left = (_start(have, want) for have, want in zip(resized.shape[1:], how.crop, strict=True))
    fill = [round(255 * mean) for mean in how.mean] if how.fit == "contain" else [0, 0, 0]
    canvas = torch.empty((*how.crop, 3), dtype=torch.uint8, device=resized.device)
    if min(top, left) < 0:
        canvas[:] = torch.tensor(fill, dtype=torch.uint8, device=resized.device)
    part = resized[:, max(top, 0) : top + how.crop[0], max(left, 0) : left + how.crop[1]].permute(1, 2, 0)
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas.permute(2, 0, 1), (float(-top), float(-left))


def _start(have: int, want: int) -> int:
    """Return where the central ``want`` of ``have`` begins; negative: the border before it."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def _cut(pixels: Tensor, target: Size, crop: Size) -> tuple[Tensor, Size]:
    """Cut off what the crop of a very long picture will not see; centres agree to half a pixel."""
    slices, sizes = [], []
    for have, resized, want in zip(pixels.shape[1:], target, crop, strict=True):
        step = have / resized
        keep = min(have, ceil(want * step) + 2 * ceil(2 * max(1.0, step)) + 2)
        keep += (have - keep) % 2
        start = (have - keep) // 2
        slices.append(slice(start, start + keep))
        sizes.append(max(min(want, resized), round(keep / step)))
    return pixels[:, slices[0], slices[1]], (sizes[0], sizes[1])


class Normalize:
    """Turns uint8 (N, 3, H, W) on any device into normalised channels-last floats on ``device``.

    Mean and deviation are kept as whole pictures: broadcast over the innermost three channels, the
    same arithmetic takes five times as long on a CPU.
    """

    def __init__(self, how: Preprocessing, device: str, dtype: torch.dtype) -> None:
        std = torch.tensor(how.std)
        self._factor = self._picture(1 / (255 * std), how.crop, device)
        self._shift = self._picture(-torch.tensor(how.mean) / std, how.crop, device)
        self._device, self._dtype = device, dtype

    def __call__(self, batch: Tensor) -> Tensor:
        """Return ``batch`` scaled to the network's range."""
        moved = batch.to(self._device, non_blocking=True)
        floats = moved.to(torch.float32, memory_format=torch.channels_last)
        return floats.mul_(self._factor).add_(self._shift).to(self._dtype)

    @staticmethod
    def _picture(colour: Tensor, size: Size, device: str) -> Tensor:
        whole = colour.view(1, 3, 1, 1).expand(1, 3, *size)
        return whole.contiguous(memory_format=torch.channels_last).to(device)
