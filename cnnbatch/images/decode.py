"""Turn the bytes of an image file into upright RGB pixels.

Plain JPEG goes through libjpeg-turbo (simplejpeg: no lock held, decodes straight to 1/2, 1/4 or
1/8), everything else through Pillow, whose pixels are the reference: slower, but its reading of
odd files is the one that people compare with. Where both can read a file they agree to the last
bit. A file that has lost part of its picture is refused rather than filled up with gray.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from cnnbatch.images.headers import JpegFacts, jpeg_facts
from cnnbatch.images.limits import LIMITS, REVISION, DecodeError, Limits
from cnnbatch.images.pillow_decode import StoredPixels, by_pillow
from cnnbatch.images.quiet import without_warnings

__all__ = ["LIMITS", "REVISION", "VERSION", "DecodeError", "Limits", "decode", "upright", "without_warnings"]

Size = tuple[int, int]
"""(height, width) in pixels."""

Pixels = NDArray[np.uint8]
"""RGB, (H, W, 3)."""

VERSION = ", ".join(f"{name} {'.'.join(version(name).split('.')[:2])}" for name in ("simplejpeg", "pillow"))
"""Which decoders decide the pixels; part of the fingerprint."""

_MOST_SCANS = 100  # encoders write about ten; a hostile file adds a pass over all pixels with ten bytes


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
    picture = _by_turbo(data, header, least, limits) if header else None
    picture = picture or by_pillow(data, limits)
    return upright(torch.from_numpy(picture.pixels).permute(2, 0, 1), picture.size, picture.orientation)


# Which axes of (3, H, W) to flip, before height and width are swapped for those in _TURNED.
_FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (1,), 7: (1, 2), 8: (2,)}
_TURNED = frozenset({5, 6, 7, 8})


def upright(pixels: torch.Tensor, size: Size, orientation: int) -> tuple[torch.Tensor, Size]:
    """Turn pixels (3, H, W) of an original of ``size``, both as stored, by EXIF's ``orientation``."""
    if axes := _FLIPS.get(orientation):
        pixels = pixels.flip(axes)
    if orientation in _TURNED:
        pixels, size = pixels.transpose(1, 2), size[::-1]
    return pixels, size


# ---- plain JPEG: libjpeg-turbo --------------------------------------------------------------

_INKS, _END = ("CMYK", "YCCK"), b"\xff\xd9"

# What libjpeg says where it goes on with gray or garbage in place of picture.
_DAMAGE = ("premature end of data segment", "bad Huffman code", "bad arithmetic code", "found marker")


@dataclass(frozen=True, slots=True)
class Header:
    """What a plain JPEG says of itself; ``colours`` and ``subsampling`` as TurboJPEG names them."""

    size: Size
    colours: str
    subsampling: str
    facts: JpegFacts


def read_header(data: bytes, limits: Limits = LIMITS) -> Header | None:
    """Check what can be checked before decoding; None where Pillow is to judge: no JPEG, rare kinds.

    Raises:
        DecodeError: as `decode`.
    """
    if not data:
        raise DecodeError("empty", "expected an image file, got zero bytes")
    if len(data) > limits.max_bytes:
        raise DecodeError("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    return _jpeg_header(data, limits) if data.startswith(b"\xff\xd8\xff") else None


def _jpeg_header(data: bytes, limits: Limits) -> Header | None:
    facts = jpeg_facts(data, _MOST_SCANS)
    if facts.scans > _MOST_SCANS:
        raise DecodeError("too_large", f"a JPEG of more than {_MOST_SCANS} scans")
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: colours or subsampling that TurboJPEG has no name for
        return None
    size = int(height), int(width)
    limits.check(*size)
    if height * width > facts.most_pixels:
        raise DecodeError("truncated", f"{len(data)} bytes do not hold {width} x {height} pixels")
    return Header(size, colours, subsampling, facts)


def _by_turbo(
    data: bytes, header: Header, least: Callable[[Size], Size | None], limits: Limits
) -> StoredPixels | None:
    """Decode by libjpeg-turbo; None where Pillow is to judge: harmless oddities."""
    size, facts = header.size, header.facts
    if header.colours in _INKS:  # Pillow converts them, but does not say what is missing.
        whole = _strictly(data, (0, 0), facts.is_complete, "CMYK") is not None
        return by_pillow(data + _END if whole else data, limits)
    turned = facts.orientation in _TURNED
    needed = least(size[::-1] if turned else size)
    floor = _scaled(size, needed[::-1] if needed and turned else needed)
    pixels = _strictly(data, floor, facts.is_complete, "RGB")
    return None if pixels is None else StoredPixels(pixels, size, facts.orientation)


def _scaled(size: Size, needed: Size | None) -> Size:
    """Return the (height, width) to decode to; (0, 0), which the decoder takes for all."""
    for divisor in (8, 4, 2) if needed else ():
        height, width = (-(-side // divisor) for side in size)
        if needed and height >= needed[0] and width >= needed[1]:
            return height, width
    return 0, 0


def _strictly(data: bytes, floor: Size, may_lack_end: bool, colours: str) -> Pixels | None:
    """Decode to RGB or CMYK with every warning an error, so that nothing is filled up; None: ask Pillow."""
    try:
        return _turbo(data, floor, colours)
    except ValueError as error:
        message = str(error)
    if "Premature end of JPEG file" in message:
        if may_lack_end:
            with suppress(ValueError):
                return _turbo(data + _END, floor, colours)
        raise DecodeError("truncated", f"the JPEG ends early: {message} ({len(data)} bytes)")
    if any(sign in message for sign in _DAMAGE):
        raise DecodeError("undecodable", f"the JPEG is damaged: {message}")
    return None


def _turbo(data: bytes, floor: Size, colours: str) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colours, min_height=floor[0], min_width=floor[1], strict=True
    )
    return pixels
