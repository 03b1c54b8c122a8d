"""Whole pictures as examples: cut and changed by chance while training, as prediction has them otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.config.train import Augment
from cnnbatch.models.preprocessing import Normalize, Preprocessing, prepare
from cnnbatch.tasks.recipes import augment
from cnnbatch.tasks.recipes.recipe import Example

if TYPE_CHECKING:
    from cnnbatch.types import Image


class WholePictures:
    """How a picture becomes one input of a size, uint8 first, and floats on the device."""

    def __init__(self, how: Preprocessing, changes: Augment) -> None:
        self.how, self._changes = how, changes
        self._fill = [float(round(255 * mean)) for mean in how.mean]
        self._normalize: Normalize | None = None

    def example(self, image: Image, target: Any, draw: Random | None) -> Example:
        """Return uint8 (3, *crop) and its ``target``, changed by chance where there is ``draw``."""
        changes = self._changes
        if draw is None or changes.crop == 1:
            pixels = prepare(image.pixels, image.size, self.how).pixels
        else:
            pixels = self._random_crop(image.pixels, changes.crop, draw)
        if draw is not None:
            pixels = augment.changed(pixels, changes, draw, self._fill)
        return Example(pixels, self.how.crop, target=target)

    def _random_crop(self, pixels: Tensor, least: float, draw: Random) -> Tensor:
        top, left, height, width = augment.random_crop((pixels.shape[1], pixels.shape[2]), least, draw)
        cropped = pixels[:, top : top + height, left : left + width]
        mode = InterpolationMode(self.how.interpolation)
        found: Tensor = transforms.resize_image(
            cropped, list(self.how.crop), interpolation=mode, antialias=True
        )
        return found

    def together(self, examples: Sequence[Example]) -> Tensor:
        """Return pictures, uint8 (N, 3, *crop), channels-last."""
        pixels = torch.stack([example.pixels for example in examples])
        return pixels.contiguous(memory_format=torch.channels_last)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return pictures of one device as float32 (N, 3, *crop)."""
        if self._normalize is None:
            self._normalize = Normalize(self.how, str(pixels.device), torch.float32)
        found: Tensor = self._normalize(pixels)
        return found
