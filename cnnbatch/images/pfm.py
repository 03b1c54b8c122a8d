"""Portable float maps, gray and in colours (Debevec's PFM), of which Pillow reads the gray ones."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from cnnbatch.images.limits import DecodeError, Limits
from cnnbatch.images.samples import Floats

_HEAD = re.compile(rb"P([Ff])\s+(\d{1,10})\s+(\d{1,10})\s+([-+.\deE]{1,40})(?:\r\n|\s)")
_BAND_ROWS_BYTES = 1 << 24


def decode_pfm(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3); floats that are no fractions are refused, since nothing says what is white.

    Raises DecodeError.
    """
    head = _HEAD.match(data)
    if head is None:
        raise DecodeError("truncated" if len(data) < 64 else "undecodable", "no header of a PFM file")
    colours, (width, height), scale = 3 if head[1] == b"F" else 1, map(int, head.group(2, 3)), _scale(head[4])
    if not width or not height:
        raise DecodeError("undecodable", f"a PFM file of {width} x {height} pixels")
    limits.check(height, width)
    count = width * height * colours
    if len(data) - head.end() < 4 * count:
        raise DecodeError("truncated", f"the file ends early, after {len(data)} bytes")
    values = np.frombuffer(data, "<f4" if scale < 0 else ">f4", count, head.end())
    return _pixels(values.reshape(height, width, colours))


def _scale(text: bytes) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not scale or not math.isfinite(scale):
        raise DecodeError("undecodable", f"a PFM file whose scale is {text!r}")
    return scale


def _pixels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn rows, which begin at the bottom, into pixels, some at a time."""
    floats, pixels = Floats(), np.empty((*values.shape[:2], 3), np.uint8)
    rows = max(1, _BAND_ROWS_BYTES // (8 * values[0].size))
    for first in range(0, len(values), rows):
        part = floats.add(values[::-1][first : first + rows])
        pixels[first : first + rows] = part
    if not floats.are_fractions:
        floats.between((), ())  # Which refuses it.
    return pixels
