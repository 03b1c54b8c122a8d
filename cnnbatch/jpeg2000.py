"""Whether a JPEG 2000 file has all of its picture, which its decoder does not say.

OpenJPEG fills up what is missing of a cut file. The codestream's own structure tells it (ISO/IEC 15444-1,
annex A): each tile comes in tile-parts, and each of these states its length and how many its tile has.
"""

from __future__ import annotations

import struct
from collections import Counter

_SOC, _SOT, _SIZ = b"\xff\x4f", b"\xff\x90", b"\xff\x51"
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
