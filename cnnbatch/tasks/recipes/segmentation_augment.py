"""Changes a picture and its map together: a window of the picture, resized and mirrored by chance.

Only what the window shows is resized, so that a small crop of a large picture costs no more than the crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from cnnbatch.config.train import Augment

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Side:
    """One direction of a window: ``length`` pixels of the picture from ``start`` on become ``resized`` ones.

    These lie from ``offset`` on among the window's own ``whole`` pixels; the others are beside the picture.
    """

    start: int
    length: int
    resized: int
    offset: int
    whole: int

    def taken(self) -> slice:
        """Return which pixels of the picture these are."""
        return slice(self.start, self.start + self.length)

    def given(self) -> slice:
        """Return which of the window's pixels are of the picture."""
        return slice(self.offset, self.offset + self.resized)

    def nearest(self, of: int, have: int) -> NDArray[np.int64]:
        """Return for each resized pixel the nearest of ``have``, where the picture's side has ``of``."""
        centres = self.start + (np.arange(self.resized) + 0.5) * (self.length / self.resized)
        return np.minimum((centres * (have / of)).astype(np.int64), have - 1)


@dataclass(frozen=True, slots=True)
class Window:
    """What of a picture of ``size`` is learned from, and whether it is ``mirrored``."""

    size: Size
    rows: Side
    columns: Side
    mirrored: bool

    def picture(self, pixels: Tensor, fill: Tensor, antialias: bool) -> Tensor:
        """Return the window of uint8 ``pixels`` (3, *size), uint8 (3, H, W); ``fill`` (3,) is beside it."""
        size = [self.rows.resized, self.columns.resized]
        part = pixels[:, self.rows.taken(), self.columns.taken()]
        resized: Tensor = transforms.resize_image(part, size, antialias=antialias)
        if size != [self.rows.whole, self.columns.whole]:
            canvas = fill[:, None, None].repeat(1, self.rows.whole, self.columns.whole)
            canvas[:, self.rows.given(), self.columns.given()] = resized
            resized = canvas
        return resized.flip(2) if self.mirrored else resized

    def map(self, places: NDArray[np.int16], ignored: int) -> Tensor:
        """Return the window of a map, int16 (H, W): the nearest pixels; ``ignored`` is beside the picture.

        The map may be of another size than the picture, in pixels, as where that was decoded smaller.
        """
        sides = zip((self.rows, self.columns), self.size, places.shape, strict=True)
        rows, columns = (side.nearest(of, have) for side, of, have in sides)
        found = np.full((self.rows.whole, self.columns.whole), ignored, places.dtype)
        found[self.rows.given(), self.columns.given()] = places[rows[:, None], columns]
        return torch.from_numpy(found[:, ::-1].copy() if self.mirrored else found)


def window(size: Size, resized: Size, crop: Size, how: Augment, draw: Random) -> Window:
    """Draw a window of ``crop`` pixels of a picture of ``size``.

    Its scale is ``how.scale`` times that from ``size`` to ``resized``, log-uniform, and its proportions
    change by up to ``how.aspect``, log-uniform as well. A picture that is smaller than the window lies
    anywhere in it.
    """
    scale = exp(draw.uniform(*map(log, how.scale)))
    most = log(1 + how.aspect)
    aspect = exp(draw.uniform(-most, most) / 2)
    rows = _side(size[0], scale / aspect * resized[0] / size[0], crop[0], draw)
    columns = _side(size[1], scale * aspect * resized[1] / size[1], crop[1], draw)
    return Window(size, rows, columns, how.flip and draw.random() < 0.5)


def _side(have: int, scale: float, want: int, draw: Random) -> Side:
    """Draw where ``want`` pixels of a side lie, of which the picture has ``have`` before it is resized."""
    length = min(have, max(1, round(want / scale)))
    resized = want if length < have else max(1, min(want, round(have * scale)))
    return Side(draw.randint(0, have - length), length, resized, draw.randint(0, want - resized), want)
