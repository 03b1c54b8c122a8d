"""The strips and tiles of a TIFF: decompressed by libtiff, and read as numbers of any depth.

libtiff, which Pillow has, is asked for bytes alone: each strip goes to it as a small TIFF of its own, one
8-bit gray picture as wide as the strip has bytes a row. Byte order, predictors and depths are read here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.images.limits import DecodeError
from cnnbatch.images.tiff_tags import FLOAT, Tiff

_NO_COMPRESSION, _DEFLATE = 1, 8
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_SHORT, _LONG = 3, 4
_MOST_STRIPS = 1 << 18  # each takes some fifty microseconds
_MOST_BYTES = 32  # a pixel of the limit, once decompressed: time that a small file may ask for
_KEPT_OF_YCBCR = (256, 257, 258, 262, 277, 278, 322, 323, 529, 530, 531, 532)


class Strips:
    """The strips, or the tiles, of one file; those of a plane stand before those of the next."""

    def __init__(self, tiff: Tiff) -> None:
        self._tiff = tiff
        rows, columns = tiff.size
        self.is_tiled = 324 in tiff.entries
        self.width = tiff.number(322) if self.is_tiled else columns
        self.height = tiff.number(323) if self.is_tiled else min(tiff.number(278, rows), rows)
        if self.width < 1 or self.height < 1:
            raise DecodeError("undecodable", f"a TIFF of tiles or strips of {self.width} x {self.height}")
        self.across, self.down = -(-columns // self.width), -(-rows // self.height)
        self.samples = 1 if tiff.are_apart else tiff.samples
        self.row_bytes = -(-self.width * self.samples * tiff.bits // 8)
        self._check()
        self._offsets = _array(tiff, 324 if self.is_tiled else 273)
        self._lengths = _array(tiff, 325 if self.is_tiled else 279)
        self._stored_rows = rows

    def _check(self) -> None:
        """Refuse what would take long to decompress, whatever it says it is."""
        count, most = self.across * self.down, self._tiff.limits.max_pixels * _MOST_BYTES
        if count > _MOST_STRIPS:
            raise DecodeError(
                "too_large", f"a TIFF of {count:,} strips or tiles; the limit is {_MOST_STRIPS:,}"
            )
        if (total := count * self.height * self.row_bytes) > most:
            raise DecodeError("too_large", f"samples of {total:,} bytes; the limit is {most:,}")

    def rows_at(self, top: int) -> int:
        """Return how many rows the strip or tile that begins at row ``top`` has in the file."""
        return self.height if self.is_tiled else min(self.height, self._stored_rows - top)

    def bytes_of(self, number: int, plane: int, rows: int) -> bytes:
        """Return the bytes of a strip or tile of one plane, decompressed. Raises DecodeError."""
        index, needed = plane * self.across * self.down + number, rows * self.row_bytes
        if index >= len(self._offsets):
            raise DecodeError("truncated", f"the TIFF lacks strip or tile {index + 1}")
        start = int(self._offsets[index])
        length = int(self._lengths[index]) if index < len(self._lengths) else needed
        data = self._tiff.data[start : start + length]
        if len(data) < length or not data:
            raise DecodeError("truncated", f"the TIFF ends in strip or tile {index + 1}")
        whole = data if self._tiff.compression == _NO_COMPRESSION else self._decompressed(data, rows)
        if len(whole) < needed:
            raise DecodeError("truncated", f"strip or tile {index + 1} has {len(whole)} of {needed} bytes")
        plain = self._tiff.compression == _NO_COMPRESSION and self._tiff.number(266, 1) == 2
        return whole.translate(_REVERSED) if plain else whole

    def band(self, data: bytes, first: int, rows: int) -> NDArray[Any]:
        """Return the samples (rows, columns, S) of some rows of a strip's bytes, in this machine's order."""
        size = self.row_bytes
        raw = np.frombuffer(data, np.uint8, rows * size, first * size).reshape(rows, size)
        predictor = self._tiff.number(317, 1) if self._tiff.compression != _NO_COMPRESSION else 1
        if predictor == 3 and self._tiff.format == FLOAT:
            return _float_differences(raw, self._tiff.bits // 8, self.samples)
        found = self._numbers(raw).reshape(rows, self.width, self.samples)
        if predictor == 2 and self._tiff.bits in (8, 16, 32, 64):
            found = np.cumsum(found, axis=1, dtype=found.dtype)
        elif predictor != 1:
            raise DecodeError("undecodable", f"a TIFF with predictor {predictor} on {self._tiff.bits} bits")
        return found.view(f"f{self._tiff.bits // 8}") if self._tiff.format == FLOAT else found

    def _numbers(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Return unsigned numbers (rows, columns * S)."""
        bits, order = self._tiff.bits, "<" if self._tiff.data[:2] == b"II" else ">"
        if bits in (8, 16, 32, 64):
            return raw.view(f"{order}u{bits // 8}").astype(f"u{bits // 8}")
        if bits % 8 == 0:
            parts = raw.reshape(len(raw), -1, bits // 8)
            return _joined(parts[..., ::-1] if order == "<" else parts, 8)
        digits = np.unpackbits(raw, axis=1, count=self.width * self.samples * bits)
        return _joined(digits.reshape(len(raw), -1, bits), 1)

    def _decompressed(self, data: bytes, rows: int) -> bytes:
        most = self._tiff.limits.max_pixels
        if rows * self.row_bytes > most:
            raise DecodeError(
                "too_large", f"a strip of {rows * self.row_bytes:,} bytes; the limit is {most:,}"
            )
        tags = {
            256: self.row_bytes,
            257: rows,
            258: 8,
            259: self._tiff.compression,
            262: 1,
            266: self._tiff.number(266, 1),
            277: 1,
            278: rows,
        }
        with opened(
            _file({tag: (_LONG, struct.pack("<L", value)) for tag, value in tags.items()}, [data])
        ) as image:
            image.load()
            return image.tobytes()


def opened(data: bytes) -> Image.Image:
    """Open a TIFF by Pillow."""
    return Image.open(io.BytesIO(data), formats=("TIFF",))


def with_deflate(tiff: Tiff) -> bytes:
    """Return an uncompressed file of one plane as one whose strips or tiles are deflated."""
    tags: dict[int, tuple[int, bytes]] = {259: (_SHORT, struct.pack("<H", _DEFLATE))}
    for tag in _KEPT_OF_YCBCR:
        if entry := tiff.entries.get(tag):
            values = struct.unpack_from(entry.layout, tiff.data, entry.place)
            tags[tag] = _little_endian(tiff, tag, values)
    is_tiled = 324 in tiff.entries
    starts, lengths = (_array(tiff, tag) for tag in ((324, 325) if is_tiled else (273, 279)))
    strips: list[bytes] = []
    for start, length in zip(starts, lengths, strict=False):
        data = tiff.data[int(start) : int(start) + int(length)]
        if len(data) < length:
            raise DecodeError("truncated", f"the TIFF ends in strip or tile {len(strips) + 1}")
        strips.append(zlib.compress(data, 0))
    return _file(tags, strips, is_tiled)


def _little_endian(tiff: Tiff, tag: int, values: tuple[Any, ...]) -> tuple[int, bytes]:
    entry = tiff.entries[tag]
    if entry.kind == 5:  # Rationals are two numbers each.
        pairs = struct.unpack_from(f"{entry.layout[0]}{2 * len(values)}L", tiff.data, entry.place)
        return entry.kind, struct.pack(f"<{len(pairs)}L", *pairs)
    return entry.kind, struct.pack("<" + entry.layout[1:], *values)


def _file(tags: Mapping[int, tuple[int, bytes]], strips: list[bytes], is_tiled: bool = False) -> bytes:
    """Return a little-endian TIFF of one directory; ``tags`` are (type, values) without the strips' own."""
    sizes = {1: 1, _SHORT: 2, _LONG: 4, 5: 8, 16: 8}
    offset_tag, length_tag = (324, 325) if is_tiled else (273, 279)
    count = len(tags) + 2
    behind = 8 + 2 + 12 * count + 4
    body, places = bytearray(), []
    for strip in strips:
        places.append(behind + len(body))
        body += strip
    whole = {
        **tags,
        offset_tag: (_LONG, struct.pack(f"<{len(strips)}L", *places)),
        length_tag: (_LONG, struct.pack(f"<{len(strips)}L", *map(len, strips))),
    }
    entries = b""
    for tag, (kind, values) in sorted(whole.items()):
        entries += struct.pack("<HHL", tag, kind, len(values) // sizes[kind])
        if len(values) > 4:
            entries += struct.pack("<L", behind + len(body))
            body += values
        else:
            entries += values.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<LH", 8, count) + entries + bytes(4) + bytes(body)


def _array(tiff: Tiff, tag: int) -> NDArray[Any]:
    """Return the integers of a tag, of which there may be as many as there are bytes."""
    entry = tiff.entries.get(tag)
    if entry is None:
        return np.empty(0, np.uint64)
    order, count, letter = entry.layout[0], entry.layout[1:-1], entry.layout[-1]
    if letter not in "HLQ" or entry.place + entry.size > len(tiff.data):
        raise DecodeError("truncated", f"the TIFF ends before the values of tag {tag}")
    kind = {"H": "u2", "L": "u4", "Q": "u8"}[letter]
    return np.frombuffer(tiff.data, f"{order}{kind}", int(count), entry.place)


def _joined(parts: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """Join the last axis, digits of ``bits`` bits with the highest first, to one number each."""
    total = parts.shape[-1] * bits
    kind = next(f"u{size}" for size in (1, 2, 4, 8) if total <= 8 * size)
    found = np.zeros(parts.shape[:-1], kind)
    for place in range(parts.shape[-1]):
        found = (found << found.dtype.type(bits)) | parts[..., place]
    return found


def _float_differences(raw: NDArray[np.uint8], size: int, samples: int) -> NDArray[Any]:
    """Undo predictor 3 (Adobe's TIFF Technical Note 3): differences of bytes, all high ones first."""
    rows = len(raw)
    summed = np.cumsum(raw.reshape(rows, -1, samples), axis=1, dtype=np.uint8).reshape(rows, size, -1)
    ordered = np.ascontiguousarray(summed.transpose(0, 2, 1))
    return ordered.view(f">f{size}").astype(f"f{size}").reshape(rows, -1, samples)
