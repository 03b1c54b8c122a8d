"""Plain JPEG through libjpeg-turbo (simplejpeg): its header, checked, and its pixels, at a part of the size.

A file that has lost part of its picture is refused rather than filled up with gray; rare kinds, and harmless
oddities, are left to Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cnnbatch.images.headers import TURNED, JpegFacts, jpeg_facts
from cnnbatch.images.limits import LIMITS, DecodeError, Limits
from cnnbatch.images.pillow_decode import StoredPixels, by_pillow

Size = tuple[int, int]
"""(height, width) in pixels."""

Pixels = NDArray[np.uint8]
"""RGB or CMYK, (H, W, 3 or 4)."""

_MOST_SCANS = 100  # encoders write about ten; a hostile file adds a pass over all pixels with ten bytes
_INKS, _END = ("CMYK", "YCCK"), b"\xff\xd9"

# What libjpeg says where it goes on with gray or garbage in place of picture.
_DAMAGE = ("premature end of data segment", "bad Huffman code", "bad arithmetic code", "found marker")


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a plain JPEG says of itself; ``colours`` and ``subsampling`` as TurboJPEG names them."""

    size: Size
    colours: str
    subsampling: str
    facts: JpegFacts


def read_header(data: bytes, limits: Limits = LIMITS) -> JpegHeader | None:
    """Check what can be checked before decoding; None where Pillow is to judge: no JPEG, rare kinds.

    Raises:
        DecodeError: as `decode`.
    """
    if not data:
        raise DecodeError("empty", "expected an image file, got zero bytes")
    if len(data) > limits.max_bytes:
        raise DecodeError("too_large", f"{len(data)} bytes; the limit is {limits.max_bytes}")
    return _jpeg_header(data, limits) if data.startswith(b"\xff\xd8\xff") else None


def _jpeg_header(data: bytes, limits: Limits) -> JpegHeader | None:
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
    return JpegHeader(size, colours, subsampling, facts)


def by_turbo(
    data: bytes, header: JpegHeader, least: Callable[[Size], Size | None], limits: Limits
) -> StoredPixels | None:
    """Decode by libjpeg-turbo; None where Pillow is to judge: harmless oddities."""
    size, facts = header.size, header.facts
    if header.colours in _INKS:  # Pillow converts them, but does not say what is missing.
        whole = _strictly(data, (0, 0), facts.is_complete, "CMYK") is not None
        return by_pillow(data + _END if whole else data, limits)
    turned = facts.orientation in TURNED
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
