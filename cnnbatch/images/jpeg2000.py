"""Whether a JPEG 2000 file has all of its picture, which its decoder does not say, and how deep that is.

OpenJPEG fills up what is missing of a cut file. The codestream's own structure tells it (ISO/IEC 15444-1,
annex A): each tile comes in tile-parts, and each of these states its length and how many its tile has.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cnnbatch.images.limits import DecodeError

Pixels = NDArray[np.uint8]

_SOC, _SOT, _SIZ = b"\xff\x4f", b"\xff\x90", b"\xff\x51"
_COD, _COC = b"\xff\x52", b"\xff\x53"
_SYCC = b"colr\1\0\0\0\0\0\x12"
END = b"\xff\xd9"
_MOST_PARTS = 1 << 20


def is_cut(data: bytes) -> bool:
    """Say whether tiles, or ends of them, are missing; a missing end marker alone is no loss."""
    try:
        start, end = _codestream(data)
        tiles, at = _header(data, start)
        return not _has_all(data, at, end, tiles)
    except struct.error:
        return True


def scaled(pixels: Pixels, data: bytes, read: Callable[[bytes], Pixels]) -> Pixels:
    """Return Pillow's ``pixels``, RGB (H, W, 3), of a file's colours from their full depth.

    Pillow shifts those of fewer than 8 bits, so that white is not 255. Those of more, but of gray alone, it
    rounds up to 256, which is black. ``read`` decodes once more, with the depth stated as one bit more: of
    reversible transforms the same numbers, then half as wide about the middle, so white is told from black.

    Raises:
        DecodeError: that can't be told: of irreversible transforms, and of YCC.
    """
    start, _ = _codestream(data)
    places, are_reversible = _components(data, start)
    depths = {(data[at] & 127) + 1 for at in places[: 3 if len(places) > 2 else 1]}
    bits = max(depths)
    if depths == {8} or (bits > 8 and len(places) == 1) or b"pclr" in data[:start]:
        return pixels
    if len(depths) > 1 or _SYCC in data[:start] or (bits > 8 and not are_reversible):
        raise DecodeError(
            "undecodable", f"JPEG 2000 with such colours of {bits} bits, for which there is no decoder"
        )
    if bits < 8:
        exact = (np.arange(256) >> (8 - bits)) * 255 // ((1 << bits) - 1)
        return exact.astype(np.uint8)[pixels]
    stated = bytearray(data)
    for at in places:
        stated[at] += 1
    pixels[(pixels == 0) & (read(bytes(stated)) >= 128)] = 255
    return pixels


def _components(data: bytes, start: int) -> tuple[list[int], bool]:
    """Return where the main header states each component's depth, and whether all are reversible."""
    at, places, transforms = start + 2, [], set()
    while data[at : at + 2] != _SOT:
        kind, (length,) = data[at : at + 2], struct.unpack_from(">H", data, at + 2)
        if kind == _SIZ:
            places = [at + 40 + 3 * number for number in range(struct.unpack_from(">H", data, at + 38)[0])]
        elif kind in (_COD, _COC):
            wide = kind == _COC and len(places) > 256
            transforms.add(data[at + (13 if kind == _COD else 10 + wide)])
        at += 2 + length
    return places, transforms == {1}


def _codestream(data: bytes) -> tuple[int, int]:
    """Return where the codestream begins and where it is to end."""
    at = 0
    while data[at : at + 2] != _SOC:
        (size,) = struct.unpack_from(">L", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        if data[at + 4 : at + 8] == b"jp2c":
            return at + head, at + size if size else len(data)
        at = at + max(size, head) if size else len(data)
    return at, len(data)


def _header(data: bytes, start: int) -> tuple[int, int]:
    """Return how many tiles there are, and where the first tile-part begins."""
    at, tiles = start + 2, 0
    while data[at : at + 2] != _SOT:
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at : at + 2] == _SIZ:
            right, bottom, _, _, wide, high, left, top = struct.unpack_from(">8L", data, at + 6)
            tiles = -(-(right - left) // max(wide, 1)) * -(-(bottom - top) // max(high, 1))
        at += 2 + length
    return tiles, at


def _has_all(data: bytes, at: int, end: int, tiles: int) -> bool:
    """Walk through the tile-parts."""
    parts, expected = Counter[int](), dict[int, int]()
    for _ in range(_MOST_PARTS):
        if data[at : at + 2] != _SOT:
            break
        tile, length, _, count = struct.unpack_from(">HLBB", data, at + 4)
        parts[tile] += 1
        expected[tile] = max(expected.get(tile, 1), count)
        if length == 0:  # The last one, up to the end marker.
            return data[:end].endswith(END) and len(data) >= end and _are_all(parts, expected, tiles)
        at += length
    return at <= len(data) and _are_all(parts, expected, tiles)


def _are_all(parts: Counter[int], expected: dict[int, int], tiles: int) -> bool:
    return len(parts) >= tiles and all(parts[tile] >= count for tile, count in expected.items())
