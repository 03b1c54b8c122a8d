"""What is laid over a small picture pixel by pixel: the colours of classes, mistakes, and heat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_VEIL, _LINE = 0.64, 0.95  # How much a class's colour covers, inside and along its boundary.
_PAPER = 0.4  # How much of white a picture becomes under what is laid over it.
_WRONG: NDArray[np.float64] = np.array([215, 38, 61], np.float64)
_HEAT: NDArray[np.float64] = np.array(
    [[64, 30, 110], [200, 50, 90], [250, 140, 40], [255, 235, 120]], np.float64
)
"""From the least to the greatest heat."""


def overlaid(
    image: Image.Image, numbers: NDArray[Any], colours: NDArray[np.uint8], clear: NDArray[np.bool_]
) -> Image.Image:
    """Return a picture under the colours of a map of its size, whose boundaries are lines.

    ``colours`` (C, 3) and ``clear`` (C,) are of each number; a ``clear`` one, and one from C on, leaves the
    picture as it is.
    """
    known = np.minimum(numbers, len(colours))
    paints = np.vstack([colours, [[0, 0, 0]]]).astype(np.float64)[known]
    seen = np.append(~clear, False)[known]
    share = np.where(seen, np.where(_lines(known), _LINE, _VEIL), 0.0)
    return _mixed(image, paints, share)


def difference(image: Image.Image, wrong: NDArray[np.bool_], left_out: NDArray[np.bool_]) -> Image.Image:
    """Return a picture in gray, red where it is ``wrong`` and flat where it is ``left_out``, which wins."""
    plain = _mixed(_faded(image), np.full((*wrong.shape, 3), 64.0), np.where(left_out, 0.8, 0.0))
    return _mixed(plain, np.broadcast_to(_WRONG, (*wrong.shape, 3)), np.where(wrong & ~left_out, 0.8, 0.0))


def heat(image: Image.Image, size: tuple[int, ...], regions: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Return a picture with regions as heat: those of the lowest ``score`` are the brightest.

    ``size`` is the (height, width) of the original, whose pixels the ``box`` of each region is in.
    """
    scale = image.height / size[0], image.width / size[1]
    warmth = np.zeros((image.height, image.width))
    warm = _warmth([float(one["score"]) for one in regions])
    for one, own in zip(regions, warm, strict=True):
        box = one["box"]
        top, left = round(box["y1"] * scale[0]), round(box["x1"] * scale[1])
        bottom, right = round(box["y2"] * scale[0]), round(box["x2"] * scale[1])
        part = warmth[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)]
        np.maximum(part, own, out=part)
    places = np.linspace(0, 1, len(_HEAT))
    paints = np.stack([np.interp(warmth, places, channel) for channel in _HEAT.T], axis=-1)
    return _mixed(_faded(image), paints, np.where(warmth > 0, 0.72, 0.0))


def _warmth(scores: Sequence[float]) -> list[float]:
    """Return 1 for the lowest of some scores, a quarter for the highest, and what lies between."""
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    return [1 - 0.75 * (score - low) / ((high - low) or 1) for score in scores]


def _lines(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour has another number."""
    found = np.zeros(numbers.shape, np.bool_)
    found[:-1] |= numbers[:-1] != numbers[1:]
    found[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    return found


def _faded(image: Image.Image) -> Image.Image:
    """Return a picture in light gray."""
    return Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), _PAPER)


def _mixed(image: Image.Image, paints: NDArray[Any], share: NDArray[np.float64]) -> Image.Image:
    """Return a picture mixed with colours (H, W, 3), whose ``share`` (H, W) is from 0 to 1."""
    part = share[..., None]
    return Image.fromarray(((1 - part) * np.asarray(image) + part * paints).astype(np.uint8))
