"""Small pictures with their objects on them; a class's colour follows from its name, so never changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from cnnbatch.images.rle import pixels
from cnnbatch.report import palette

COLOURS = ("#4269b5", "#0a8f83", "#d9a227", "#d4553b", "#8a5bb5", "#7c8a3a", "#c2477f")
SKELETON = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
"""The bones between COCO's 17 points of a person, counted from 0 (the category's ``skeleton``)."""

_VEIL, _SEGMENT_VEIL = 0.42, 0.55  # How much a mask covers.
_LONGEST_LABEL = 40
_LIGHT = 165  # The luminance from which on words are black.
_BEYOND = 8.0  # Pixels outside of the picture that an outline may reach.
_FONT_SHARE, _LEAST_FONT = 0.042, 11  # Of the longer side; the pictures are shown at half their size.


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class _Box(NamedTuple):
    """A box in pixels of the small picture."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)

    @property
    def side(self) -> float:
        return min(self.right - self.left, self.bottom - self.top)


def marked(image: Image.Image, size: tuple[int, int], objects: Iterable[Mapping[str, Any]]) -> Image.Image:
    """Draw objects on a picture whose original has ``size`` (width, height), and return it.

    ``objects`` are rows of predictions or of truth, with a box, a mask or keypoints; the largest come
    first, so none is hidden. One that is an ``alarm`` stands out. Segments, which cover the picture and say
    whether they are things, have their labels in their midst.
    """
    scale = image.width / size[0]
    scaled = [(_scaled(one.get("box"), scale, image.size), one) for one in objects]
    boxed = [(box, one) for box, one in scaled if box is not None]
    boxed.sort(key=lambda pair: (bool(pair[1].get("alarm")), -pair[0].area))
    midst: dict[int, tuple[int, int]] = {}
    for place, (_, one) in enumerate(boxed):
        mask = _mask(one.get("mask"), size, image.size)
        if mask is not None:
            segment = one.get("is_thing") is not None
            image.paste(_veiled(image, mask, _paint(one), _SEGMENT_VEIL if segment else _VEIL))
            midst |= {place: _midst(mask)} if segment and mask.any() else {}
    drawing = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(_LEAST_FONT, round(_FONT_SHARE * max(image.size))))
    for place, (box, one) in enumerate(boxed):
        if one.get("keypoints"):
            _draw_points(drawing, one, scale, min(2.5, max(1.0, box.side / 20)))
        _draw_box(drawing, box, one, font, midst.get(place))
    return image


def colour(label: Any) -> str:
    """Return the colour of a class."""
    return COLOURS[blake2b(str(label).encode(), digest_size=1).digest()[0] % len(COLOURS)]


def _paint(one: Mapping[str, Any]) -> str:
    """Return the colour of an object's class, or its own; those of segments, which are many, are more."""
    if paint := one.get("paint"):
        return str(paint)
    if one.get("is_thing") is None:
        return colour(one["label"])
    return palette.css(palette.colour_of(str(one["label"])))


def _ink(paint: str) -> str:
    """Return the colour of words on a colour: black on a light one."""
    red, green, blue = ImageColor.getrgb(paint)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > _LIGHT else "white"


def _midst(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the middle (x, y) of the longest run of a mask in the row that halves its pixels."""
    rows = np.cumsum(mask.sum(axis=1))
    row = int(np.searchsorted(rows, rows[-1] / 2))
    edges = np.flatnonzero(np.diff(mask[row].astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    longest = int((ends - starts).argmax())
    return int(starts[longest] + ends[longest]) // 2, row


def _around(
    midst: tuple[int, int], text: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float]:
    """Return the corner of a text around a point, so that it stays in the picture."""
    width, height = text[2], text[3]
    return (
        min(max(midst[0] - width / 2, 2), max(size[0] - width - 2, 2)),
        min(max(midst[1] - height / 2, 1), max(size[1] - height - 2, 1)),
    )


def _scaled(box: Mapping[str, float] | None, scale: float, shown: tuple[int, int]) -> _Box | None:
    """Return a box in pixels of the small picture, hardly beyond its edges; None where it is no box."""
    sides = [(box or {}).get(side) for side in ("x1", "y1", "x2", "y2")]
    known = [scale * side for side in sides if side is not None and isfinite(side)]
    if len(known) < 4:
        return None
    most = 2 * [*(length + _BEYOND for length in shown)]
    left, top, right, bottom = (
        min(max(side, -_BEYOND), limit) for side, limit in zip(known, most, strict=True)
    )
    return _Box(left, top, max(left, right), max(top, bottom))


def _draw_box(
    drawing: ImageDraw.ImageDraw,
    box: _Box,
    one: Mapping[str, Any],
    font: Font,
    midst: tuple[int, int] | None,
) -> None:
    """Draw the outline, unless a mask has its own, and the label where there is room for it.

    The faces that the job ``faces`` finds have none: it would cover their eyes, and nothing else is found.
    """
    paint, label = _paint(one), str(one["label"])[:_LONGEST_LABEL]
    if one.get("alarm"):
        drawing.rectangle(box, outline="white", width=5)
    if one.get("alarm") or not one.get("mask"):
        drawing.rectangle(box, outline=paint, width=1 if one.get("crowd") else 2)
    is_face = "quality" in one
    if one.get("alarm") or (not is_face and box.side >= 2 * drawing.textbbox((0, 0), "A", font)[3]):
        text = f"{label} (crowd)" if one.get("crowd") else label
        corner = max(box.left, 0) + 3, max(box.top, 0) + 2
        if midst is not None:
            corner = _around(midst, drawing.textbbox((0, 0), text, font), drawing.im.size)
        drawing.rectangle(drawing.textbbox(corner, text, font), fill=paint)
        drawing.text(corner, text, _ink(paint), font)


def _draw_points(drawing: ImageDraw.ImageDraw, one: Mapping[str, Any], scale: float, radius: float) -> None:
    """Draw the points that can be seen, and the bones between them where they are a person's."""
    paint = colour(one["label"])
    seen = [_spot(point, scale) for point in one["keypoints"]]
    for first, second in SKELETON if len(seen) == 17 else ():
        ends = seen[first], seen[second]
        if ends[0] and ends[1]:
            drawing.line((*ends[0], *ends[1]), paint, round(radius))
    for point in filter(None, seen):
        drawing.circle(point, radius, "white", paint)


def _spot(point: Mapping[str, Any], scale: float) -> tuple[float, float] | None:
    """Return where a point lies in the small picture; None where it was not labelled."""
    spot = [scale * point[axis] for axis in ("x", "y") if point[axis] is not None]
    labelled = point["visibility"] != 0 and len(spot) == 2 and all(map(isfinite, spot))
    return (spot[0], spot[1]) if labelled else None


def _mask(
    mask: Mapping[str, Any] | None, size: tuple[int, int], shown: tuple[int, int]
) -> NDArray[np.bool_] | None:
    """Return a mask in pixels of the small picture; None where there is none, or one of another size."""
    whole = pixels(mask) if mask and tuple(mask["size"]) == size[::-1] else None
    return (
        None if whole is None else np.asarray(Image.fromarray(whole).resize(shown, Image.Resampling.NEAREST))
    )


def _veiled(image: Image.Image, mask: NDArray[np.bool_], paint: str, veil: float) -> Image.Image:
    """Return the picture under a veil of the mask's shape, with its outline."""
    inside = np.pad(mask, 1)
    inside = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    share = np.where(mask, np.where(inside, veil, 1.0), 0.0)[..., None]
    veiled = (1 - share) * np.asarray(image) + share * np.array(ImageColor.getrgb(paint))
    return Image.fromarray(veiled.astype(np.uint8))
