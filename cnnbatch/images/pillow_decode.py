"""Every image file but plain JPEG, by Pillow: its pixels are the reference where it reads a format right."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Imported so that they register: Image.open would else import every plugin that Pillow has.
from PIL import AvifImagePlugin as _avif  # noqa: F401
from PIL import DdsImagePlugin as _dds  # noqa: F401
from PIL import IcoImagePlugin as _ico  # noqa: F401
from PIL import Image, UnidentifiedImageError
from PIL import Jpeg2KImagePlugin as _jpeg2k  # noqa: F401
from PIL import PcxImagePlugin as _pcx  # noqa: F401
from PIL import PsdImagePlugin as _psd  # noqa: F401
from PIL import QoiImagePlugin as _qoi  # noqa: F401
from PIL import SgiImagePlugin as _sgi  # noqa: F401
from PIL import TgaImagePlugin as _tga  # noqa: F401
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

from cnnbatch.images import jpeg2000, pfm, png
from cnnbatch.images.formats import BY_PILLOW, HEIF_EXTRA, has_extra, lacks_decoder, recognise
from cnnbatch.images.headers import ends_early, orientation
from cnnbatch.images.limits import DecodeError, Limits
from cnnbatch.images.quiet import without_warnings
from cnnbatch.images.redaction import kind_of, said
from cnnbatch.images.tiff import decode_tiff

Size = tuple[int, int]

_BAND_PIXELS = 1 << 20  # Pillow's pixels are converted band by band: less memory, and faster
_PSD_BITMAP, _PSD_INKS = 0, 7
_WITH_MAGIC = tuple(name for name in BY_PILLOW if name != "TGA")  # whose magic number is at its end


@dataclass(frozen=True, slots=True)
class StoredPixels:
    """RGB (H, W, 3) as stored; ``size`` is the stored original's (height, width), ``orientation`` EXIF's."""

    pixels: NDArray[np.uint8]
    size: Size
    orientation: int


def by_pillow(data: bytes, limits: Limits) -> StoredPixels:
    """Decode a file that is no plain JPEG. Raises DecodeError."""
    try:
        with without_warnings():
            return _READERS.get(recognise(data), _read)(data, limits)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every built-in exception
        raise _refusal(error, data) from error


# ---- formats of which Pillow alone does not make the most ----------------------------------------------


def _read_tiff(data: bytes, limits: Limits) -> StoredPixels:
    found = decode_tiff(data, limits)
    return _read(data, limits) if found is None else StoredPixels(*found)


def _read_png(data: bytes, limits: Limits) -> StoredPixels:
    """Read a PNG; one that Pillow refuses without all but its picture, and with its end."""
    try:
        return _read(data, limits)
    except (DecodeError, Image.DecompressionBombError):
        raise
    except Exception:
        found = _read(png.bare(data), limits)
    texts = png.texts(data)
    turned = found.orientation
    if turned == 1:
        turned = orientation(
            _raw_profile(texts.get(png.EXIF, b"").decode("latin-1")), texts.get(png.XMP, b"")
        )
    return StoredPixels(found.pixels, found.size, turned)


def _read_jpeg2000(data: bytes, limits: Limits) -> StoredPixels:
    if jpeg2000.is_cut(data):
        raise DecodeError("truncated", f"the file ends early, after {len(data)} bytes")
    try:
        found = _read(data, limits)
    except OSError:  # Only its end marker may be missing.
        data = data.removesuffix(jpeg2000.END[:1]) + jpeg2000.END
        found = _read(data, limits)
    pixels = jpeg2000.scaled(found.pixels, data, lambda stated: _read(stated, limits).pixels)
    return StoredPixels(pixels, found.size, found.orientation)


def _read_psd(data: bytes, limits: Limits) -> StoredPixels:
    """Read a PSD by its mode: of a bitmap 1 is black, of separate inks none has an agreed colour."""
    bits, mode = (int.from_bytes(data[at : at + 2]) for at in (22, 24))
    if bits > 8:
        raise DecodeError("undecodable", f"a PSD of {bits} bits, for which there is no decoder")
    if mode == _PSD_INKS:
        raise DecodeError("undecodable", "a PSD of several channels that are no colours")
    found = _read(data, limits)
    return StoredPixels(255 - found.pixels, found.size, found.orientation) if mode == _PSD_BITMAP else found


def _read_pfm(data: bytes, limits: Limits) -> StoredPixels:
    if data[:2].lower() != b"pf":
        return _read(data, limits)
    pixels = pfm.decode_pfm(data, limits)
    return StoredPixels(pixels, (pixels.shape[0], pixels.shape[1]), 1)


_READERS: dict[str, Callable[[bytes, Limits], StoredPixels]] = {
    "TIFF": _read_tiff,
    "PNG": _read_png,
    "JPEG2000": _read_jpeg2000,
    "PSD": _read_psd,
    "PPM": _read_pfm,
}


# ---- Pillow -------------------------------------------------------------------------------------------


def _read(data: bytes, limits: Limits) -> StoredPixels:
    with opened(data) as image:
        limits.check(image.height, image.width)
        image.load()
        limits.check(image.height, image.width)  # an icon's directory may lie about its picture
        return StoredPixels(_rgb(image), (image.height, image.width), _orientation_of(image))


def opened(data: bytes) -> Image.Image:
    """Open a file by those of Pillow's readers that are used here."""
    return Image.open(io.BytesIO(data), formats=_formats(recognise(data)))


def _formats(name: str) -> tuple[str, ...]:
    if name == "TGA":
        return (name,)
    return (*_WITH_MAGIC, "HEIF") if name in ("HEIF", "AVIF") and has_heif() else _WITH_MAGIC


@cache
def has_heif() -> bool:
    """Say whether the optional decoder of HEIF is installed; where it is, have Pillow use it."""
    if not has_extra(HEIF_EXTRA):
        return False
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1  # Whoever decodes here has threads of its own.
    pillow_heif.register_heif_opener()
    return True


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert to RGB band by band, so that Pillow's 4-byte pixels exist twice for one band only."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // image.width)
    # A PGM of more than 8 bits is "I", which Pillow has spread over 0..65535.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if image.mode in ("I", "F") and not deep:
        raise DecodeError("undecodable", f"a {image.format} of pixels without an agreed range")
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = (
            (np.asarray(band) >> 8)[..., None] if deep else np.asarray(band.convert("RGB"))
        )
    return pixels


def _orientation_of(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow has turned it while loading
    exif, xmp = image.info.get("exif"), image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    if exif is None:
        exif = _raw_profile(image.info.get("Raw profile type exif", ""))
    return orientation(exif, xmp.encode() if isinstance(xmp, str) else xmp)


def _raw_profile(text: str) -> bytes:
    """Read EXIF from ImageMagick's text chunk of a PNG: three lines of head, then hexadecimal."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


# ---- refusals -----------------------------------------------------------------------------------------

_CUT = re.compile(r"truncated|\bEOF\b|end of file|not enough|unexpected end", re.IGNORECASE)


def _refusal(error: Exception, data: bytes) -> DecodeError:
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return DecodeError("too_large", str(error) or "more memory than there is")
    name = recognise(data)
    if lacking := lacks_decoder(name):
        return DecodeError("undecodable", lacking)
    if isinstance(error, EOFError) or _CUT.search(str(error)) or ends_early(data):
        return DecodeError("truncated", f"the file ends early, after {len(data)} bytes")
    if isinstance(error, UnidentifiedImageError):
        known = ", ".join(BY_PILLOW)
        if name:
            return DecodeError("undecodable", f"{name}: damaged, or of a kind that Pillow does not read")
        return DecodeError("undecodable", f"expected one of {known}; it is {kind_of(data)}")
    return DecodeError("undecodable", f"{type(error).__name__}: {said(error)}")
