"""Turn the bytes of an image file into upright RGB pixels.

Plain JPEG goes through libjpeg-turbo (simplejpeg: no lock held, decodes straight to 1/2, 1/4 or
1/8), everything else through Pillow, whose pixels are the reference: slower, but its reading of
odd files is the one that people compare with. Where both can read a file they agree to the last
bit. A file that has lost part of its picture is refused rather than filled up with gray.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

# Imported so that they register: Image.open would else import every plugin that Pillow has.
from PIL import AvifImagePlugin as _avif  # noqa: F401
from PIL import IcoImagePlugin as _ico  # noqa: F401
from PIL import Image, UnidentifiedImageError
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

from cnnbatch.headers import JpegFacts, ends_early, jpeg_facts, orientation
from cnnbatch.records import Code
from cnnbatch.unquoted import kind_of, said

Size = tuple[int, int]
"""(height, width) in pixels."""

Pixels = NDArray[np.uint8]
"""RGB, (H, W, 3)."""

VERSION = ", ".join(f"{name} {'.'.join(version(name).split('.')[:2])}" for name in ("simplejpeg", "pillow"))
"""Which decoders decide the pixels; part of the fingerprint."""

# No EPS (Pillow starts Ghostscript), no format without a magic number, and no JPEG 2000 (a file
# cut behind its header decodes without complaint).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO")

_MOST_SCANS = 100  # encoders write about ten; a hostile file adds a pass over all pixels with ten bytes
_BAND_PIXELS = 1 << 20  # Pillow's pixels are converted band by band: less memory, and faster


class DecodeError(Exception):
    """The image's own bytes are at fault.

    ``code`` is ``empty``, ``undecodable``, ``truncated`` or ``too_large``; ``message`` is for the row.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)  # both, so that it travels between processes whole
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may cost; the pixels are checked on the header, before anything is decoded.

    ``max_pixels`` counts the original's; its default is where Pillow itself refuses, so a larger
    one reaches plain JPEG only.
    """

    max_pixels: int = 178_956_970
    max_bytes: int = 512 * 2**20


LIMITS = Limits()


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
    the first counts. One exception: 16-bit gray is brought to 8 bits by its high byte, as Pillow
    does for 16-bit RGB, where ``convert`` would clip all above 255 to white. 32-bit integers and
    floats, which have no agreed range, are clipped to 0..255 as Pillow does.

    Raises:
        DecodeError: the file is empty, over a limit, cut off or not to be decoded. A JPEG whose
            entropy-coded data are damaged is refused where Pillow would go on with garbage.
    """
    header = read_header(data, limits)
    picture = _by_turbo(data, header, least) if header else None
    picture = picture or _by_pillow(data, limits)
    return upright(torch.from_numpy(picture.pixels).permute(2, 0, 1), picture.size, picture.orientation)


@dataclass(frozen=True, slots=True)
class _Picture:
    """Pixels as they are stored; ``size`` is the stored original's, ``orientation`` EXIF's 1 to 8."""

    pixels: Pixels
    size: Size
    orientation: int


def _check(size: Size, limits: Limits) -> None:
    if size[0] * size[1] > limits.max_pixels:
        raise DecodeError("too_large", f"{size[1]} x {size[0]} pixels; the limit is {limits.max_pixels}")


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
    """Check what can be checked before decoding; None where Pillow is to judge: no JPEG, CMYK, rare kinds.

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
    _check(size, limits)
    if height * width > facts.most_pixels:
        raise DecodeError("truncated", f"{len(data)} bytes do not hold {width} x {height} pixels")
    return None if colours in ("CMYK", "YCCK") else Header(size, colours, subsampling, facts)


def _by_turbo(data: bytes, header: Header, least: Callable[[Size], Size | None]) -> _Picture | None:
    """Decode by libjpeg-turbo; None where Pillow is to judge: harmless oddities."""
    size, facts = header.size, header.facts
    turned = facts.orientation in _TURNED
    needed = least(size[::-1] if turned else size)
    floor = _scaled(size, needed[::-1] if needed and turned else needed)
    pixels = _strictly(data, floor, facts.one_scan)
    return None if pixels is None else _Picture(pixels, size, facts.orientation)


def _scaled(size: Size, needed: Size | None) -> Size:
    """Return the (height, width) to decode to; (0, 0), which the decoder takes for all."""
    for divisor in (8, 4, 2) if needed else ():
        height, width = (-(-side // divisor) for side in size)
        if needed and height >= needed[0] and width >= needed[1]:
            return height, width
    return 0, 0


def _strictly(data: bytes, floor: Size, may_lack_end: bool) -> Pixels | None:
    """Decode with every warning an error, so that nothing is filled up in silence; None: ask Pillow."""
    try:
        return _turbo(data, floor)
    except ValueError as error:
        message = str(error)
    if "Premature end of JPEG file" in message:
        if may_lack_end:  # the picture of a single scan may be whole, and only the end marker missing
            with suppress(ValueError):
                return _turbo(data + b"\xff\xd9", floor)
        raise DecodeError("truncated", f"the JPEG ends early: {message} ({len(data)} bytes)")
    if any(sign in message for sign in _DAMAGE):
        raise DecodeError("undecodable", f"the JPEG is damaged: {message}")
    return None


def _turbo(data: bytes, floor: Size) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=floor[0], min_width=floor[1], strict=True)
    return pixels


# ---- everything else: Pillow ----------------------------------------------------------------


def _by_pillow(data: bytes, limits: Limits) -> _Picture:
    try:
        with without_warnings(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check((image.height, image.width), limits)
            image.load()
            _check((image.height, image.width), limits)  # an icon's directory may lie about its picture
            return _Picture(_rgb(image), (image.height, image.width), _orientation_of(image))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every built-in exception
        raise _refusal(error, data) from error


def _rgb(image: Image.Image) -> Pixels:
    """Convert to RGB band by band, so that Pillow's 4-byte pixels exist twice for one band only."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // image.width)
    # A PGM of more than 8 bits is "I", which Pillow has spread over 0..65535.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
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


_CUT = re.compile(r"truncated|\bEOF\b|end of file|not enough|unexpected end", re.IGNORECASE)


def _refusal(error: Exception, data: bytes) -> DecodeError:
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return DecodeError("too_large", str(error) or "more memory than there is")
    if isinstance(error, EOFError) or _CUT.search(str(error)) or ends_early(data):
        return DecodeError("truncated", f"the file ends early, after {len(data)} bytes")
    if isinstance(error, UnidentifiedImageError):
        return DecodeError("undecodable", f"expected one of {', '.join(_FORMATS)}; it is {kind_of(data)}")
    return DecodeError("undecodable", f"{type(error).__name__}: {said(error)}")


# ---- libraries' warnings ----------------------------------------------------------------------


class _Decoding(threading.local):
    now = False


_decoding = _Decoding()
_filter_lock = threading.Lock()


class _InThisThread(type):
    def __subclasscheck__(cls, category: type) -> bool:
        return _decoding.now


class _Remark(Warning, metaclass=_InThisThread):
    """Every category of warning in a thread that is decoding, none in any other."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings in this thread alone.

    `warnings.catch_warnings` swaps the filters of the whole process, which threads that come and
    go leave in disorder. This is one filter that stays, and holds where `_decoding` says so.
    """
    with _filter_lock:
        if not warnings.filters or warnings.filters[0][2] is not _Remark:
            warnings.simplefilter("ignore", _Remark)
    _decoding.now = True
    try:
        yield
    finally:
        _decoding.now = False
