"""Patches of pictures with a class a pixel: each an image, its label the class of nearly all its pixels."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cnnbatch.errors import UserError
from cnnbatch.sources.regions import Region
from cnnbatch.storage import NotFound, Storage, join, redact
from cnnbatch.truth import Class
from cnnbatch.types import ImageRef, Source

SHARE = 0.8
"""Of a patch's pixels, how many have to be of its class."""

VOID = 255
"""The value of pixels that belong to no class."""

_READERS = 16


@dataclass(frozen=True)
class MaskPatches:
    """Squares of ``side`` pixels, side by side from the top left; those without one class are left out.

    A picture's mask is the PNG file of the same name in the folder ``masks``, whose values are classes:
    places in ``names``, or numbers where there are none.
    """

    source: Source
    storage: Storage
    masks: str
    side: int
    names: tuple[str, ...]

    @property
    def classes(self) -> Sequence[Class]:
        """The classes by their value."""
        return [Class(name, value) for value, name in enumerate(self.names)]

    def pairs(self) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        """Stream the pictures with their patches, the masks read side by side."""
        refs = self.source.refs()
        with ThreadPoolExecutor(_READERS, "masks") as pool:
            while some := list(islice(refs, 4 * _READERS)):
                yield from zip(some, pool.map(self._patches, some), strict=True)

    def _patches(self, ref: ImageRef) -> list[Region]:
        uri = join(self.masks, posixpath.splitext(ref.key)[0] + ".png")
        try:
            data = self.storage.read(uri)
        except NotFound:
            return []
        values = _values(data, redact(uri))
        labels = majority(values, self.side)
        region = partial(self._region, size=values.shape, columns=labels.shape[1])
        return [region(number, int(value)) for number, value in enumerate(labels.ravel()) if value >= 0]

    def _region(self, number: int, value: int, size: tuple[int, int], columns: int) -> Region:
        top, left = (place * self.side for place in divmod(number, columns))
        box = {"x1": left, "y1": top, "x2": left + self.side, "y2": top + self.side}
        name = self.names[value] if value < len(self.names) else str(value)
        return Region(number, box, name, size=size)


def majority(values: NDArray[np.uint8], side: int) -> NDArray[np.int64]:
    """Return of each whole square of ``side`` the value that `SHARE` of its pixels have, -1 where none is."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    squares = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    flat = squares.swapaxes(1, 2).reshape(rows * columns, side * side)  # [P, side * side]
    counts = np.array([np.bincount(square, minlength=256) for square in flat]).reshape(-1, 256)
    best = counts.argmax(1)
    clear = (counts.max(1, initial=0) >= SHARE * side * side) & (best != VOID)
    return np.where(clear, best, -1).reshape(rows, columns)


def _values(data: bytes, where: str) -> NDArray[np.uint8]:
    """Return a mask's values: those of the file, not the colours of its palette."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode in ("L", "P", "1"):
                return np.asarray(image, np.uint8)
            mode = image.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is no whole PNG file: {error}\n  what to do: write it again") from None
    raise UserError(
        f"{where}: a mask of one value a pixel (gray or palette) was expected, got {mode}\n"
        "  what to do: write the classes' numbers, not their colours"
    )
