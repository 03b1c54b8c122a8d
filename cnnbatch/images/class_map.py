"""Maps of classes: a number for every pixel, as PNG or as COCO's run lengths a class, and their colours.

A PNG has the numbers as its values and a palette for people to look at; run lengths can be queried class by
class. Which of them a value is, its type tells.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco

from cnnbatch.images import rle
from cnnbatch.images.limits import LIMITS

NONE = 255
"""The number of pixels of no class, in maps of 8 bits."""

Numbers = NDArray[np.uint8] | NDArray[np.uint16]

_MODES = ("L", "P", "1", "I;16")
_LOSSY = ("JPEG", "WEBP", "AVIF", "JPEG2000")
_PNG_DEPTH = 24  # The place of a sample's bits in a PNG file.


class NotAMap(ValueError):
    """Why a file has no number of a class for every pixel, in a clause."""


def png(numbers: Numbers, compress_level: int = 6) -> bytes:
    """Return a map (H, W) as a PNG file: of 8 bits with `colours` as its palette, or of 16 bits, gray."""
    image = Image.fromarray(numbers)
    if numbers.dtype == np.uint8:
        image.putpalette(colours(256).tobytes())
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=compress_level)
    return sink.getvalue()


def from_png(data: bytes) -> Numbers:
    """Return the numbers (H, W) of a PNG file: its values, not the colours of its palette.

    Raises:
        NotAMap: it is no whole PNG file of one value a pixel.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.format != "PNG":
                raise NotAMap(no_png(image.format))
            if image.mode not in _MODES:
                raise NotAMap(f"expected one value a pixel (gray or palette), got colours ({image.mode})")
            if image.width * image.height > LIMITS.max_pixels:
                raise NotAMap(
                    f"expected at most {LIMITS.max_pixels:,} pixels, got {image.width} x {image.height}"
                )
            numbers: Any = np.asarray(image, np.uint16 if image.mode == "I;16" else np.uint8)
            if image.mode == "L" and (bits := data[_PNG_DEPTH]) < 8:  # Pillow has them from 0 to 255.
                numbers = numbers // (255 // (2**bits - 1))
    except UnidentifiedImageError:
        raise NotAMap("it is no whole PNG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, NotAMap):
            raise
        raise NotAMap(f"it is no whole PNG file: {error}") from None
    return numbers  # type: ignore[no-any-return]


def no_png(format: str | None) -> str:
    """Return the words for a file of numbers that is of another ``format``, as Pillow calls it."""
    if format in _LOSSY:
        return f"expected a PNG file, got {format}, whose values are not kept exactly"
    return f"expected a PNG file of the same values, got {format}"


def counts(data: bytes) -> dict[int, int]:
    """Return how many pixels of a PNG file have each of its numbers; raises NotAMap."""
    pixels = np.bincount(from_png(data).ravel())
    there = np.flatnonzero(pixels)
    return dict(zip(there.tolist(), pixels[there].tolist(), strict=True))


def translated(numbers: Numbers, places: Mapping[int, int], none: int = NONE) -> Numbers:
    """Return a map with the place of each number instead of it, ``none`` for numbers that ``places`` lack.

    It is of 16 bits where a place or ``none`` is above 255, else of 8.
    """
    largest = max(none, *places.values()) if places else none
    table: Any = np.full(
        int(np.iinfo(numbers.dtype).max) + 1, none, np.uint8 if largest <= NONE else np.uint16
    )
    for number, place in places.items():
        if number < len(table):
            table[number] = place
    found: Numbers = table[numbers]
    return found


def runs(numbers: Numbers, classes: int) -> list[dict[str, Any]]:
    """Return a map (H, W) as a mask for each class that it has: ``class``, and ``mask`` as `truth.MASK`.

    ``classes`` is how many there are; pixels of other numbers are in no mask.
    """
    height, width = numbers.shape
    flat = numbers.T.ravel()  # COCO's runs go down the columns.
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] + 1))
    ends, owners = np.append(starts[1:], len(flat)), flat[starts]
    found = []
    for number in np.unique(owners[owners < classes]).tolist():
        own = owners == number
        edges = np.stack((starts[own], ends[own]), axis=1).ravel()
        last = [len(flat)] if edges[-1] < len(flat) else []
        counts = np.diff(np.concatenate(([0], edges, last)))
        packed = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        mask = {"size": [height, width], "counts": packed["counts"].decode()}
        found.append({"class": number, "mask": mask})
    return found


def from_runs(masks: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Numbers:
    """Return the map of ``size`` (height, width) that `runs` was given; `NONE` where no class is.

    Above 255 classes it is of 16 bits, and 65535 stands for none. Raises NotAMap where a mask is damaged or
    of another size.
    """
    wide = max((int(one["class"]) for one in masks), default=0) >= NONE
    numbers = np.full(size, 65535 if wide else NONE, np.uint16 if wide else np.uint8)
    for one in masks:
        inside = rle.pixels(one["mask"])
        if inside is None or inside.shape != size:
            raise NotAMap(
                f"the mask of class {one['class']} is damaged or not of {size[1]} x {size[0]} pixels, "
                f"or these are more than {rle.MOST_PIXELS:,}"
            )
        numbers[inside] = one["class"]
    return numbers


def colours(count: int) -> NDArray[np.uint8]:
    """Return a colour for each number, (count, 3): PASCAL VOC's colour map.

    VOC devkit, ``VOClabelcolormap``: the bits of a number, three at a time, are the highest bits of red,
    green and blue.
    """
    numbers = np.arange(count)
    found = np.zeros((count, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            found[:, channel] |= (numbers >> (3 * place + channel) & 1) << (7 - place)
    return found.astype(np.uint8)
