"""TIFF files that Pillow refuses or shows wrongly: deep, signed and float samples, planes apart, odd bits.

The specification is TIFF 6.0 (Adobe, 1992) with its Technical Notes, and BigTIFF's. A strip or tile is
decompressed by Pillow's libtiff, which is shown it as one gray 8-bit picture; what its bytes mean is decided
here, a band of rows at a time and straight to 8 bits, so that memory is that of the picture and one strip.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from cnnbatch.headers import Entry, directory
from cnnbatch.limits import DecodeError, Limits
from cnnbatch.samples import Floats, eight_bits, from_colours, multiplied_back
from cnnbatch.tiff_strips import Strips, opened, with_deflate

Pixels = NDArray[np.uint8]

_BAND_SAMPLES = 1 << 21  # of one band of rows: up to eight bytes each while they are scaled

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_COLOURS = {
    WHITE_IS_ZERO: 1,
    BLACK_IS_ZERO: 1,
    RGB: 3,
    PALETTE: 1,
    SEPARATED: 4,
    YCBCR: 3,
    CIELAB: 3,
    ICCLAB: 3,
}
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
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_ASSOCIATED = 1
_PLAIN_BYTES = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})  # schemes that know bytes, not pictures
_MOST_BYTES = 8 * 3 << 16  # of one tag's values: a palette of 16 bits has 3 * 65,536 of them


@dataclass(frozen=True)
class Tiff:
    """What the first directory of a file says of its picture, as far as it decides the pixels."""

    data: bytes
    limits: Limits

    @cached_property
    def entries(self) -> dict[int, Entry]:
        """The directory."""
        return dict(directory(self.data))

    def values(self, tag: int, *otherwise: Any) -> tuple[Any, ...]:
        """Return the values of a tag, or what stands for them where it is absent."""
        entry = self.entries.get(tag)
        if entry is None:
            return otherwise
        if entry.size > _MOST_BYTES:
            raise DecodeError("undecodable", f"a TIFF whose tag {tag} has {entry.size:,} bytes")
        return struct.unpack_from(entry.layout, self.data, entry.place)

    def number(self, tag: int, otherwise: int = 0) -> int:
        """Return the first value of a tag, which is to be an integer."""
        values = self.values(tag, otherwise)
        if not values or not isinstance(values[0], int):
            raise DecodeError("undecodable", f"a TIFF whose tag {tag} is {values}, expected an integer")
        return values[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored, checked."""
        height, width = self.number(257), self.number(256)
        if height < 1 or width < 1:
            raise DecodeError("undecodable", f"a TIFF of {width} x {height} pixels")
        self.limits.check(height, width)
        return height, width

    @property
    def photometric(self) -> int:
        """PhotometricInterpretation; where it is missing Pillow takes it for WhiteIsZero."""
        return self.number(262)

    @property
    def orientation(self) -> int:
        """EXIF's orientation, 1 to 8."""
        value = self.number(274, 1)
        return value if 1 <= value <= 8 else 1

    @property
    def samples(self) -> int:
        """Samples a pixel."""
        return self.number(277, 1)

    @property
    def bits(self) -> int:
        """Bits of a sample; all have as many, or `refuse_unknown` refuses."""
        return self.number(258, 1)

    @property
    def format(self) -> int:
        """SampleFormat of all samples; undefined ones are taken for unsigned."""
        value = self.number(339, _UNSIGNED)
        return _UNSIGNED if value == _UNDEFINED else value

    @property
    def are_apart(self) -> bool:
        """Whether each sample lies in a plane of its own."""
        return self.number(284, 1) == 2 and self.samples > 1

    @property
    def compression(self) -> int:
        """The scheme's number."""
        return self.number(259, 1)

    @property
    def colours(self) -> int:
        """Samples that are colours; those behind them are extra ones."""
        return _COLOURS[self.photometric]

    @property
    def is_associated(self) -> bool:
        """Whether the colours are multiplied by the alpha behind them."""
        extra = self.values(338)
        return bool(extra) and extra[0] == _ASSOCIATED and self.samples > self.colours


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
    if tiff.photometric not in _COLOURS:
        words = _OTHER_PHOTOMETRICS.get(tiff.photometric, "unknown")
        raise _unknown(f"photometric interpretation {tiff.photometric}: {words}")
    if tiff.photometric == SEPARATED and tiff.number(332, 1) != 1:
        raise _unknown("inks other than CMYK")
    if tiff.compression in _OTHER_COMPRESSIONS:
        raise _unknown(f"compression {tiff.compression}: {_OTHER_COMPRESSIONS[tiff.compression]}")
    bits, formats = set(tiff.values(258, 1)), set(tiff.values(339, _UNSIGNED))
    if len(bits) > 1 or len(formats) > 1:
        raise _unknown(f"samples that differ: {sorted(bits)} bits, formats {sorted(formats)}")
    if not formats <= {_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED}:
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
    if tiff.number(339, 1) != _UNSIGNED or tiff.bits > deepest or tiff.are_apart:
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
    if tiff.format == _FLOAT and tiff.bits not in (16, 32, 64):
        raise _unknown(f"floats of {tiff.bits} bits")
    if not 1 <= tiff.bits <= 64 or (tiff.photometric == PALETTE and (tiff.bits > 16 or tiff.format != 1)):
        raise _unknown(f"samples of {tiff.bits} bits")
    if tiff.format == _SIGNED and (tiff.is_associated or tiff.photometric in (CIELAB, ICCLAB)):
        raise _unknown("signed samples of such a kind")
    if tiff.samples < tiff.colours:
        raise _unknown(f"{tiff.samples} samples a pixel, expected {tiff.colours}")
    if tiff.format != _FLOAT:
        return _filled(tiff, lambda band: eight_bits(band, tiff.bits, tiff.format == _SIGNED))
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
    if tiff.is_associated and tiff.format == _FLOAT:
        colours = np.divide(colours, alpha, where=alpha > 0, out=np.zeros_like(colours))
    scaled = scale(colours)
    if tiff.is_associated and tiff.format != _FLOAT:  # As Pillow does, on 8 bits.
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
    if tiff.bits != 8 or tiff.samples != 3 or tiff.are_apart or tiff.format != _UNSIGNED:
        raise _unknown(f"YCbCr of {tiff.samples} samples of {tiff.bits} bits")
    with opened(with_deflate(tiff)) as image:
        image.load()
        return np.array(image.convert("RGB"))


def _unknown(what: str) -> DecodeError:
    return DecodeError("undecodable", f"a TIFF with {what}, for which there is no decoder")
