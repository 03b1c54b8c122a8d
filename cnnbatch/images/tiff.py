"""TIFF files that Pillow refuses or shows wrongly: deep, signed and float samples, planes apart, odd bits.

The specification is TIFF 6.0 (Adobe, 1992) with its Technical Notes, and BigTIFF's. A strip or tile is
decompressed by Pillow's libtiff, which is shown it as one gray 8-bit picture; what its bytes mean is decided
here, a band of rows at a time and straight to 8 bits, so that memory is that of the picture and one strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from cnnbatch.images.limits import DecodeError, Limits
from cnnbatch.images.samples import Floats, eight_bits, from_colours, multiplied_back
from cnnbatch.images.tiff_strips import Strips, opened, with_deflate
from cnnbatch.images.tiff_tags import (
    CIELAB,
    COLOURS,
    FLOAT,
    ICCLAB,
    PALETTE,
    RGB,
    SEPARATED,
    SIGNED,
    UNDEFINED,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    Tiff,
)

Pixels = NDArray[np.uint8]

_BAND_SAMPLES = 1 << 21  # of one band of rows: up to eight bytes each while they are scaled

_OTHER_PHOTOMETRICS = {
    4: "a transparency mask",
    10: "ITU L*a*b*",
    32803: "a raw colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw samples",
    51177: "a depth map",
}
_OTHER_COMPRESSIONS = {
    **dict.fromkeys((9, 10, 34661), "JBIG"),
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34887: "LERC",
}
_PLAIN_BYTES = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})  # schemes that know bytes, not pictures


def decode_tiff(data: bytes, limits: Limits) -> tuple[Pixels, tuple[int, int], int] | None:
    """Return RGB (H, W, 3), the stored (height, width) and the orientation; None where Pillow is to decode.

    Raises:
        DecodeError: what it is has no agreed colours, or nobody here decodes it; the message names it.
        struct.error: the directory is cut.
    """
    tiff = Tiff(data, limits)
    _refuse_raw(tiff)
    if not tiff.entries:
        return None
    refuse_unknown(tiff)
    if is_pillows(tiff):
        return None
    if tiff.photometric == YCBCR:
        return _ycbcr(tiff), tiff.size, tiff.orientation
    return _picture(tiff), tiff.size, tiff.orientation


# ---- who decodes it ----------------------------------------------------------------------------------


def refuse_unknown(tiff: Tiff) -> None:
    """Raise DecodeError, which names it, for what nobody here decodes or would decode to another picture."""
    if tiff.photometric not in COLOURS:
        words = _OTHER_PHOTOMETRICS.get(tiff.photometric, "unknown")
        raise _unknown(f"photometric interpretation {tiff.photometric}: {words}")
    if tiff.photometric == SEPARATED and tiff.number(332, 1) != 1:
        raise _unknown("inks other than CMYK")
    if tiff.compression in _OTHER_COMPRESSIONS:
        raise _unknown(f"compression {tiff.compression}: {_OTHER_COMPRESSIONS[tiff.compression]}")
    bits, formats = set(tiff.values(258, 1)), set(tiff.values(339, UNSIGNED))
    if len(bits) > 1 or len(formats) > 1:
        raise _unknown(f"samples that differ: {sorted(bits)} bits, formats {sorted(formats)}")
    if not formats <= {UNSIGNED, SIGNED, FLOAT, UNDEFINED}:
        raise _unknown(f"sample format {formats.pop()}: complex numbers")


def _refuse_raw(tiff: Tiff) -> None:
    """Refuse a camera's raw file: what stands first in it is a small preview."""
    name = "CR2" if tiff.data[8:10] == b"CR" else "DNG" if 50706 in tiff.entries else ""
    if not name and tiff.entries.keys() >= {254, 330} and tiff.number(254) & 1:
        name = "raw"
    if name:
        raise DecodeError(
            "undecodable", f"a camera's raw file ({name}), for which there is no decoder; develop it first"
        )


def is_pillows(tiff: Tiff) -> bool:
    """Say whether Pillow decodes it as the specification says: 8 bits or fewer, or 16-bit RGB and CMYK.

    Schemes that compress pictures, not bytes (JPEG, WebP, the fax ones), always are: their samples have 8
    bits, or one.
    """
    if tiff.compression not in _PLAIN_BYTES:
        return True
    deepest = 16 if tiff.photometric in (RGB, SEPARATED) else 8
    if tiff.number(339, 1) != UNSIGNED or tiff.bits > deepest or tiff.are_apart:
        return False
    if tiff.data.startswith(b"MM\0+"):
        return False  # Pillow knows no BigTIFF of that byte order.
    if tiff.photometric == YCBCR:
        return tiff.compression != 1  # There Pillow's own reader takes subsampled data for pixels.
    order = b"II" if tiff.data[:2] == b"II" else b"MM"
    bits = (tiff.bits,) * min(tiff.samples, TiffImagePlugin.MAX_SAMPLESPERPIXEL + 1)
    key = order, tiff.photometric, (1,), tiff.number(266, 1), bits, tiff.values(338)
    return TiffImagePlugin.OPEN_INFO.get(key, ("La", ""))[0] != "La"  # Which Pillow can't convert to RGB.


# ---- pixels -------------------------------------------------------------------------------------------


def _picture(tiff: Tiff) -> Pixels:
    if tiff.format == FLOAT and tiff.bits not in (16, 32, 64):
        raise _unknown(f"floats of {tiff.bits} bits")
    if not 1 <= tiff.bits <= 64 or (tiff.photometric == PALETTE and (tiff.bits > 16 or tiff.format != 1)):
        raise _unknown(f"samples of {tiff.bits} bits")
    if tiff.format == SIGNED and (tiff.is_associated or tiff.photometric in (CIELAB, ICCLAB)):
        raise _unknown("signed samples of such a kind")
    if tiff.samples < tiff.colours:
        raise _unknown(f"{tiff.samples} samples a pixel, expected {tiff.colours}")
    if tiff.format != FLOAT:
        return _filled(tiff, lambda band: eight_bits(band, tiff.bits, tiff.format == SIGNED))
    floats = Floats()
    pixels = _filled(tiff, floats.add)
    if not floats.are_fractions:
        low, high = tiff.values(340), tiff.values(341)
        pixels = _filled(tiff, floats.between(low, high))
    return pixels


def _filled(tiff: Tiff, scale: Callable[[NDArray[Any]], Pixels]) -> Pixels:
    """Return the picture, each band of its samples brought to 8 bits by ``scale``."""
    height, width = tiff.size
    pixels = np.empty((height, width, 3), np.uint8)
    palette = _palette(tiff) if tiff.photometric == PALETTE else None
    for top, left, band in _bands(tiff):
        rows, columns = min(len(band), height - top), min(band.shape[1], width - left)
        shown = band[:rows, :columns]
        part = palette[shown[..., 0]] if palette is not None else _colours(tiff, shown, scale)
        pixels[top : top + rows, left : left + columns] = part
    return pixels


def _colours(tiff: Tiff, band: NDArray[Any], scale: Callable[[NDArray[Any]], Pixels]) -> Pixels:
    colours, alpha = band[..., : tiff.colours], band[..., tiff.colours :]
    if tiff.is_associated and tiff.format == FLOAT:
        colours = np.divide(colours, alpha, where=alpha > 0, out=np.zeros_like(colours))
    scaled = scale(colours)
    if tiff.is_associated and tiff.format != FLOAT:  # As Pillow does, on 8 bits.
        scaled = multiplied_back(scaled, eight_bits(alpha, tiff.bits))
    if tiff.photometric == WHITE_IS_ZERO:
        scaled = 255 - scaled
    if tiff.photometric == ICCLAB:
        scaled = scaled ^ np.array([0, 128, 128], np.uint8)  # There a and b are offset by half.
    mode = {SEPARATED: "CMYK", CIELAB: "LAB", ICCLAB: "LAB"}.get(tiff.photometric)
    return from_colours(scaled, mode) if mode else scaled


def _palette(tiff: Tiff) -> Pixels:
    values = tiff.values(320)
    entries = 1 << tiff.bits
    if len(values) != 3 * entries:
        raise DecodeError("undecodable", f"a TIFF palette of {len(values)} numbers, expected {3 * entries}")
    return (np.array(values, np.uint16) >> 8).astype(np.uint8).reshape(3, entries).T  # [entries, 3]


def _bands(tiff: Tiff) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Yield (top, left, samples (rows, columns, S)) of bands that together are the picture."""
    needed = tiff.colours + tiff.is_associated
    strips = Strips(tiff)
    for number in range(strips.across * strips.down):
        top, left = divmod(number, strips.across)
        top, left = top * strips.height, left * strips.width
        rows = strips.rows_at(top)
        step = max(1, _BAND_SAMPLES // (strips.width * max(1, strips.samples)))
        planes = [strips.bytes_of(number, plane, rows) for plane in range(needed if tiff.are_apart else 1)]
        for first in range(0, rows, step):
            parts = [strips.band(plane, first, min(step, rows - first)) for plane in planes]
            band = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0][..., :needed]
            yield top + first, left, band


def _ycbcr(tiff: Tiff) -> Pixels:
    """Let libtiff convert raw YCbCr, subsampled or not: it does for what is compressed."""
    if tiff.bits != 8 or tiff.samples != 3 or tiff.are_apart or tiff.format != UNSIGNED:
        raise _unknown(f"YCbCr of {tiff.samples} samples of {tiff.bits} bits")
    with opened(with_deflate(tiff)) as image:
        image.load()
        return np.array(image.convert("RGB"))


def _unknown(what: str) -> DecodeError:
    return DecodeError("undecodable", f"a TIFF with {what}, for which there is no decoder")
