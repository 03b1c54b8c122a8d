"""Small pictures with boxes on them; a class's colour follows from its name, so is always the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

LEAST_NAMED_SIDE = 28  # pixels of the small picture; a smaller box has no room for its label
COLOURS = ("#4269b5", "#0a8f83", "#d9a227", "#d4553b", "#8a5bb5", "#7c8a3a", "#c2477f")


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

    ``objects`` are rows of predictions or of truth with a box; the largest come first, so none is hidden.
    """
    drawing = ImageDraw.Draw(image)
    boxes = [(_scaled(one["box"], image.width / size[0]), one) for one in objects]
    for box, one in sorted(boxes, key=lambda pair: -pair[0].area):
        _draw(drawing, box, str(one["label"]), bool(one.get("crowd")))
    return image


def _scaled(box: Mapping[str, float], scale: float) -> _Box:
    left, top, right, bottom = (scale * box[side] for side in ("x1", "y1", "x2", "y2"))
    return _Box(left, top, max(left, right), max(top, bottom))


def _draw(drawing: ImageDraw.ImageDraw, box: _Box, label: str, crowd: bool) -> None:
    colour = COLOURS[blake2b(label.encode(), digest_size=1).digest()[0] % len(COLOURS)]
    drawing.rectangle(box, outline=colour, width=1 if crowd else 2)
    if box.side >= LEAST_NAMED_SIDE:
        text, font = f"{label} (crowd)" if crowd else label, ImageFont.load_default(12)
        corner = max(box.left, 0) + 3, max(box.top, 0) + 2
        drawing.rectangle(drawing.textbbox(corner, text, font), fill=colour)
        drawing.text(corner, text, "white", font)
