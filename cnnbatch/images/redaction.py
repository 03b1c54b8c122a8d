"""What an error says of bytes that were read: what kind of file they are, and never the bytes themselves.

An address may lead to what nobody meant to show, a list of passwords for instance; a message goes to reports,
logs and other people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_KINDS = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3\0": "an SQLite database",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"8BPS": "a Photoshop picture",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
}
_BRANDS = {b"heic": "a HEIC picture", b"heix": "a HEIC picture", b"mif1": "a HEIF picture"}
_MARKUP = {b"<!doctype html": "a web page", b"<html": "a web page", b"<svg": "an SVG drawing"}
_NAME = re.compile(r"\w[\w .()/#-]{0,63}")
_SHOWN = 30


def kind_of(data: bytes) -> str:
    """Return what kind of file bytes are, in words."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video or picture of the MPEG-4 family")
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<?xml"):
        return "an SVG drawing" if b"<svg" in start else "an XML file"
    known = [name for magic, name in _KINDS.items() if data.startswith(magic)]
    known += [name for mark, name in _MARKUP.items() if start.startswith(mark)]
    return known[0] if known else "text" if _is_text(data[:512]) else "of no known kind"


def _is_text(data: bytes) -> bool:
    return all(byte in b"\t\n\r\f\x1b" or byte >= 32 and byte != 127 for byte in data)


def said(error: Exception) -> str:
    """Return what a library said of a file, up to where it may quote from it."""
    return re.split(r"""[:"'(]""", f"{error}", maxsplit=1)[0].strip() or "damaged"


def value(found: Any) -> str:
    """Return what a value of a file is, without the value."""
    if found is None:
        return "nothing"
    if isinstance(found, bool):
        return "yes or no"
    if isinstance(found, int | float):
        return "a number"
    if isinstance(found, dict):
        return f"an object with {len(found):,} fields"
    return f"a list of {len(found):,}" if isinstance(found, list | tuple) else "text"


def columns(names: Sequence[str]) -> str:
    """Return the names of a table's columns as a message may list them.

    What can be no name is left out; a single one may be the first line of anything.
    """
    shown = [name for name in names if _NAME.fullmatch(name)] if len(names) > 1 else []
    left = len(names) - len(shown[:_SHOWN])
    others = f"{left:,} whose names are not shown" if left else ""
    return ", ".join([*shown[:_SHOWN], *([others] if others else [])])
