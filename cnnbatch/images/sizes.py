"""How large an upright picture is, by its file's header: without torch, and without decoding it."""

from __future__ import annotations

from PIL import Image

from cnnbatch.images.formats import BY_PILLOW, recognise
from cnnbatch.images.headers import TURNED, orientation
from cnnbatch.images.pillow_decode import opened
from cnnbatch.images.quiet import without_warnings

Size = tuple[int, int]


def stated_size(data: bytes) -> Size | None:
    """Return the upright (width, height) that a file's header states; None where that is not to be told."""
    if recognise(data) not in BY_PILLOW:
        return None
    try:
        with without_warnings(), opened(data) as image:
            size, turn = stored_size(image)
    except Exception:  # Pillow's readers raise nearly every built-in exception.
        return None
    return size[::-1] if turn in TURNED else size


def stored_size(image: Image.Image) -> tuple[Size, int]:
    """Return (width, height) as Pillow states them, and EXIF's orientation, 1 where Pillow turned them."""
    return image.size, 1 if image.format == "TIFF" else _orientation(image)


def _orientation(image: Image.Image) -> int:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    return orientation(image.info.get("exif") or b"", xmp.encode() if isinstance(xmp, str) else xmp)
