"""From the samples of a file, of whatever depth, to 8 bits a colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.images.limits import DecodeError

Pixels = NDArray[np.uint8]

_ROUNDING = 1e-5  # by so much a float may leave 0 … 1: far less than a step of 8 bits


def eight_bits(samples: NDArray[Any], bits: int, signed: bool = False) -> Pixels:
    """Return integers of ``bits`` bits, from their full depth: the high byte, or spread over 0 … 255.

    ``samples`` are unsigned; ``signed`` ones lie there in two's complement, and their least is black.
    """
    if signed:
        samples = samples ^ samples.dtype.type(1 << (bits - 1))
    if bits >= 8:
        high: Pixels = (samples >> samples.dtype.type(bits - 8)).astype(np.uint8)
        return high
    return (samples.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)


class Floats:
    """Brings floats to 8 bits: fractions by 255; others need to be told what is black and what white."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    @property
    def are_fractions(self) -> bool:
        """Whether all that were added lie within 0 … 1."""
        return self.low >= -_ROUNDING and self.high <= 1 + _ROUNDING

    def add(self, samples: NDArray[Any]) -> Pixels:
        """Return some as fractions, and note where they lie."""
        if samples.size:
            low, high = float(samples.min()), float(samples.max())  # NaN where one is, which is no fraction.
            self.low = low if math.isnan(low) else min(self.low, low)
            self.high = high if math.isnan(high) else max(self.high, high)
        return _spread(samples, 0.0, 1.0)

    def between(self, black: Sequence[Any], white: Sequence[Any]) -> Callable[[NDArray[Any]], Pixels]:
        """Return what scales from ``black`` to ``white``, each one value or one a colour.

        Raises DecodeError where they are not known.
        """
        low, high = np.array(black, np.float64), np.array(white, np.float64)
        if not (low.size and high.size and np.isfinite([*low, *high]).all() and (low < high).all()):
            raise DecodeError(
                "undecodable",
                f"floats from {self.low:g} to {self.high:g}: expected 0 … 1, or SMinSampleValue and "
                "SMaxSampleValue, which say what is black and white",
            )
        return lambda samples: _spread(samples, _each(low, samples), _each(high, samples))


def from_colours(samples: Pixels, mode: str) -> Pixels:
    """Convert (H, W, S) of 8 bits in Pillow's ``mode``, as CMYK or LAB lie in files, to RGB."""
    height, width = samples.shape[:2]
    data = np.ascontiguousarray(samples).tobytes()
    return np.asarray(Image.frombytes(mode, (width, height), data, "raw", mode).convert("RGB"))


def multiplied_back(colours: Pixels, alpha: Pixels) -> Pixels:
    """Return colours as they were before they were multiplied by alpha, black where that is 0."""
    whole = colours.astype(np.uint16) * 255 // np.maximum(alpha, 1)
    return np.where(alpha > 0, np.minimum(whole, 255), 0).astype(np.uint8)


def _each(values: NDArray[Any], samples: NDArray[Any]) -> NDArray[Any]:
    return values if values.size == 1 else values[: samples.shape[-1]]


def _spread(samples: NDArray[Any], low: Any, high: Any) -> Pixels:
    with np.errstate(all="ignore"):  # What is no number is black.
        scaled = (samples.astype(np.float64) - low) * (255 / (high - low))
    finite = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
    pixels: Pixels = np.rint(finite.clip(0, 255)).astype(np.uint8)
    return pixels
