"""Turn the bytes of an image file into upright RGB pixels.

Plain JPEG goes through libjpeg-turbo (simplejpeg: no lock held, decodes straight to 1/2, 1/4 or
1/8), everything else through Pillow, whose pixels are the reference: slower, but its reading of
odd files is the one that people compare with. Where both can read a file they agree to the last
bit. A file that has lost part of its picture is refused rather than filled up with gray.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import torch

from cnnbatch.images.headers import TURNED
from cnnbatch.images.jpeg import Size, by_turbo, read_header
from cnnbatch.images.limits import LIMITS, DecodeError, Limits
from cnnbatch.images.pillow_decode import by_pillow

__all__ = ["LIMITS", "VERSION", "DecodeError", "Limits", "Size", "decode", "full", "upright"]

VERSION = ", ".join(f"{name} {'.'.join(version(name).split('.')[:2])}" for name in ("simplejpeg", "pillow"))
"""Which decoders decide the pixels; part of the fingerprint."""


def full(size: Size) -> None:
    """Ask for every pixel: the default of ``least``."""


def decode(
    data: bytes, least: Callable[[Size], Size | None] = full, limits: Limits = LIMITS
) -> tuple[torch.Tensor, Size]:
    """Decode one image file: uint8 RGB (3, H, W), upright, and the upright original's (height, width).

    ``least`` is given the upright original's (height, width), read from the header, and says how
    many (height, width) are needed, None for all; a plain JPEG is then decoded at 1/8, 1/4 or 1/2
    if that still is at least as much in both directions.

    The tensor lies channels-last, a permuted (H, W, 3) buffer; for EXIF orientations 5 to 8 it is
    the transpose of one. It may be written to.

    Pixels equal Pillow's ``ImageOps.exif_transpose(Image.open(file).convert("RGB"))``: alpha and
    transparency are dropped, not blended; embedded colour profiles are ignored; of several frames
    the first counts. Exceptions are samples of more than 8 bits, and TIFFs that Pillow refuses or reads
    otherwise than the specification says. Integers are brought to 8 bits from their full depth, so those
    of 16 bits by their high byte, as Pillow does for RGB, where ``convert`` would clip gray at 255. Floats
    within 0 … 1 count 255; others go from SMinSampleValue to SMaxSampleValue, or are refused.

    Raises:
        DecodeError: the file is empty, over a limit, cut off or not to be decoded. A JPEG whose
            entropy-coded data are damaged is refused where Pillow would go on with garbage.
    """
    header = read_header(data, limits)
    picture = by_turbo(data, header, least, limits) if header else None
    picture = picture or by_pillow(data, limits)
    return upright(torch.from_numpy(picture.pixels).permute(2, 0, 1), picture.size, picture.orientation)


# Which axes of (3, H, W) to flip, before height and width are swapped for those in TURNED.
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (1,), 7: (1, 2), 8: (2,)}


def upright(pixels: torch.Tensor, size: Size, orientation: int) -> tuple[torch.Tensor, Size]:
    """Turn pixels (3, H, W) of an original of ``size``, both as stored, by EXIF's ``orientation``."""
    if axes := _FLIPS.get(orientation):
        pixels = pixels.flip(axes)
    if orientation in TURNED:
        pixels, size = pixels.transpose(1, 2), size[::-1]
    return pixels, size
