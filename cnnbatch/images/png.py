"""A PNG reduced to its picture, where what else it holds stops Pillow.

Pillow refuses text that inflates past a megabyte, and a file without its last chunk. The picture is whole
all the same where its IDAT chunks are (PNG specification, third edition, section 5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_OF_THE_PICTURE = frozenset({b"IHDR", b"PLTE", b"IDAT", b"eXIf"})  # tRNS is alpha, which is dropped
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_MOST_TEXT = 16 << 20  # of what may say how the picture is turned
XMP, EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"


def bare(data: bytes) -> bytes:
    """Return a PNG of the same picture, with its end and without anything that is not picture.

    A last IDAT chunk that is cut stays as far as it goes: whether it is all of the picture shows when it is
    decoded.
    """
    parts = [SIGNATURE]
    for kind, start, end in _chunks(data):
        if kind in _OF_THE_PICTURE and (kind == b"IDAT" or end + 4 <= len(data)):
            body = data[start:end]
            whole = len(body) == end - start and end + 4 <= len(data)
            computed = struct.pack(">L", zlib.crc32(kind + body))
            crc = data[end : end + 4] if whole else computed
            if kind == b"eXIf" and crc != computed:
                continue  # As libpng does, which passes over damaged chunks that are no picture.
            parts += [struct.pack(">L", len(body)), kind, body, crc]
    parts.append(struct.pack(">L", 0) + b"IEND" + struct.pack(">L", zlib.crc32(b"IEND")))
    return b"".join(parts)


def texts(data: bytes) -> dict[bytes, bytes]:
    """Return the texts that may say how the picture is turned, by `XMP` and `EXIF`."""
    found: dict[bytes, bytes] = {}
    for kind, start, end in _chunks(data):
        keyword = data[start : start + 80].split(b"\0")[0]
        if kind in _TEXTS and keyword in (XMP, EXIF) and keyword not in found:
            found[keyword] = _text(kind, data[start + len(keyword) + 1 : end])
    return found


def _text(kind: bytes, body: bytes) -> bytes:
    """Return a chunk's text, inflated up to a bound."""
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed, body = body[:1] == b"\1", body[2:].split(b"\0", 2)[-1]
    elif compressed:
        body = body[1:]
    if not compressed:
        return body
    try:
        return zlib.decompressobj().decompress(body, _MOST_TEXT)
    except zlib.error:
        return b""


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of the chunks' bodies up to IEND; the last may reach beyond the file."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        if kind == b"IEND":
            return
        yield kind, at + 8, at + 8 + length
        at += 12 + length
