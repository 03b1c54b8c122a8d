"""What is laid over a small picture pixel by pixel: the colours of classes, mistakes, and heat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_VEIL, _LINE = 0.64, 0.95  # How much a class's colour covers, inside and along its boundary.
_COVER = 0.8  # How much the colours of a difference cover.
_PAPER, _NIGHT = 0.55, 0.6  # How much of white, or of black, a picture becomes under what is laid over it.
WRONG, IN_PART, LEFT_OUT = (215, 38, 61), (240, 165, 0), (64, 64, 64)
"""Colours of a `difference`."""

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


def difference(
    image: Image.Image,
    wrong: NDArray[np.bool_],
    left_out: NDArray[np.bool_] | None = None,
    in_part: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Return a picture in light gray, with these pixels (H, W) in their colours; of several the last wins.

    `WRONG` is red, `IN_PART` amber, `LEFT_OUT` dark.
    """
    paints, share = np.zeros((*wrong.shape, 3)), np.zeros(wrong.shape)
    for colour, some in ((WRONG, wrong), (IN_PART, in_part), (LEFT_OUT, left_out)):
        if some is not None:
            paints[some], share[some] = colour, _COVER
    return _mixed(_faded(image), paints, share)


def heat(image: Image.Image, size: tuple[int, ...], regions: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Return a dark picture with regions as heat: those of the lowest ``score`` are the brightest.

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
    night = Image.blend(_gray(image), Image.new("RGB", image.size), _NIGHT)
    return _mixed(night, paints, np.where(warmth > 0, 0.72, 0.0))


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
    return Image.blend(_gray(image), Image.new("RGB", image.size, "white"), _PAPER)


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _mixed(image: Image.Image, paints: NDArray[Any], share: NDArray[np.float64]) -> Image.Image:
    """Return a picture mixed with colours (H, W, 3), whose ``share`` (H, W) is from 0 to 1."""
    part = share[..., None]
    return Image.fromarray(((1 - part) * np.asarray(image) + part * paints).astype(np.uint8))
