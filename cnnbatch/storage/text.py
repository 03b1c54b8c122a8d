"""Text as it lies in files: UTF-8, or what its byte order mark says, which is no part of the text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARK_BYTES = 4
"""How much of a file tells its encoding."""


class LongLine(Exception):
    """A line is longer than any line of such a text."""


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text by its first `MARK_BYTES`; the codec leaves the mark out."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def decoded(data: bytes, errors: str = "strict") -> str:
    """Return a whole text; raises UnicodeDecodeError unless ``errors`` says otherwise."""
    return data.decode(encoding_of(data[:MARK_BYTES]), errors)


def text_lines(file: BinaryIO, longest: int, errors: str = "strict") -> Iterator[str]:
    """Stream the lines of a text, each with its end, a line feed.

    Raises UnicodeDecodeError as `decoded` does, and LongLine for one of ``longest`` bytes or characters.
    """
    encoding = encoding_of(file.read(MARK_BYTES))
    file.seek(0)
    if encoding in ("utf-16", "utf-32"):
        yield from _wide_lines(file, encoding, longest, errors)
        return
    while line := file.readline(longest):
        if len(line) == longest:
            raise LongLine
        yield line.decode(encoding, errors)
        encoding = "utf-8"  # the mark was in the first line


def _wide_lines(file: BinaryIO, encoding: str, longest: int, errors: str) -> Iterator[str]:
    text = io.TextIOWrapper(file, encoding, errors, newline="\n")
    try:
        while line := text.readline(longest):
            if len(line) == longest:
                raise LongLine
            yield line
    finally:
        text.detach()  # the file is closed by whoever opened it
