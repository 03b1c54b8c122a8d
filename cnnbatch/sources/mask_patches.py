"""Patches of pictures with a class a pixel: each an image, its label the class of nearly all its pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.images.class_map import NotAMap
from cnnbatch.sources.masks.meaning import Meaning
from cnnbatch.sources.masks.places import stem_of
from cnnbatch.sources.masks.reading import READERS, mask_bytes
from cnnbatch.sources.regions import Region
from cnnbatch.storage import Storage, join, redact
from cnnbatch.truth import Class
from cnnbatch.types import ImageRef, Source

SHARE = 0.8
"""Of a patch's pixels, how many have to be of its class."""

VOID = 255
"""The value of pixels that belong to no class."""


@dataclass(frozen=True)
class MaskPatches:
    """Squares of ``side`` pixels, side by side from the top left; those without one class are left out.

    A picture's mask is the PNG file of the same name in the folder ``masks``; ``meaning`` says what its
    values are. Where the set names no classes, they are called by their numbers.
    """

    source: Source
    storage: Storage
    masks: str
    side: int
    meaning: Meaning

    @property
    def classes(self) -> Sequence[Class]:
        """The classes that the set names."""
        return self.meaning.classes if self.meaning.named else []

    def pairs(self) -> Iterator[tuple[ImageRef, Sequence[Region]]]:
        """Stream the pictures with their patches, the masks read side by side."""
        refs = self.source.refs()
        with ThreadPoolExecutor(READERS, "masks") as pool:
            while some := list(islice(refs, 4 * READERS)):
                yield from zip(some, pool.map(self._patches, some), strict=True)

    def _patches(self, ref: ImageRef) -> list[Region]:
        path = stem_of(ref.key) + ".png"
        data = mask_bytes(self.storage, self.masks, path)
        if data is None:
            return []
        numbers = self._numbers(data, redact(join(self.masks, path)))
        labels = majority(numbers, self.side)
        region = partial(self._region, size=numbers.shape, columns=labels.shape[1])
        return [region(number, int(value)) for number, value in enumerate(labels.ravel()) if value >= 0]

    def _numbers(self, data: bytes, where: str) -> NDArray[np.uint8]:
        """Return the classes' numbers of a mask; `VOID` where pixels do not count."""
        try:
            numbers = self.meaning.of(class_map.from_png(data))
        except NotAMap as error:
            raise UserError(
                f"{where}: {error}\n"
                "  what to do: write the classes' numbers as a PNG file of one value a pixel"
            ) from None
        if numbers.dtype != np.uint8:
            raise UserError(
                f"{where}: expected numbers of classes up to {VOID}, got some of 16 bits\n"
                "  what to do: give each a smaller one in input.relabel, or leave it out there"
            )
        ignored = np.isin(numbers, sorted(self.meaning.ignored))
        return np.where(ignored, np.uint8(VOID), numbers)

    def _region(self, number: int, value: int, size: tuple[int, int], columns: int) -> Region:
        top, left = (place * self.side for place in divmod(number, columns))
        box = {"x1": left, "y1": top, "x2": left + self.side, "y2": top + self.side}
        return Region(number, box, self._names.get(value, str(value)), size=size)

    @cached_property
    def _names(self) -> dict[int, str]:
        return {int(one.id): one.name for one in self.meaning.classes}


def majority(values: NDArray[np.uint8], side: int) -> NDArray[np.int64]:
    """Return of each whole square of ``side`` the value that `SHARE` of its pixels have, -1 where none is."""
    rows, columns = values.shape[0] // side, values.shape[1] // side
    squares = values[: rows * side, : columns * side].reshape(rows, side, columns, side)
    flat = squares.swapaxes(1, 2).reshape(rows * columns, side * side)  # [P, side * side]
    counts = np.array([np.bincount(square, minlength=256) for square in flat]).reshape(-1, 256)
    best = counts.argmax(1)
    clear = (counts.max(1, initial=0) >= SHARE * side * side) & (best != VOID)
    return np.where(clear, best, -1).reshape(rows, columns)
