"""Text on its way to a terminal or a page: what could steer either is written as an escape instead.

Names come from files of others: keys, labels, tensors, messages of libraries. A control character among
them could clear the screen, forge a line or turn the direction of reading. The price: a folder whose name
has such a character is shown otherwise than it is called.
"""

from __future__ import annotations

import io
import re
import sys

# C0, DEL and C1; surrogates, which stand for bytes that are no UTF-8; the marks, embeddings, overrides and
# isolates that change the direction of reading, the two separators that break a line, and the characters of
# annotations. Source: Unicode 16, chapter 23; UAX #9, section 2.
_CONTROL = "\x00-\x1f\x7f-\x9f\ud800-\udfff"
_DIRECTION = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\U000e0000-\U000e007f"
_IN_LINE = re.compile(f"[{_CONTROL}{_DIRECTION}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_CONTROL}{_DIRECTION}]")


def line(text: str) -> str:
    """Return ``text`` as one line in which no character steers: those that would are written as escapes."""
    return _IN_LINE.sub(_escape, text)


def lines(text: str) -> str:
    """Return ``text`` as `line` does, but keep its line breaks and tabs."""
    return _IN_TEXT.sub(_escape, text)


def say(text: str, err: bool = False) -> None:
    """Print ``text``, which may have several lines, on the standard output or on the standard error.

    Characters that its encoding lacks are printed as escapes.
    """
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(lines(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def never_fail() -> None:
    """Have whatever else prints do as `say` with characters that the encoding lacks, from here on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def steering(text: str) -> str | None:
    """Return the first character of ``text`` that is a control character or no Unicode; None without any."""
    found = re.search(f"[{_CONTROL}]", text)
    return found[0] if found else None


def unlike(mark: str) -> str:
    """Return in words what was expected of a text that has the character ``mark``, and what came."""
    if mark >= "\ud800":
        return "text in UTF-8, got bytes that are none"
    return f"text without control characters, got {ascii(mark)} in it"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # By which Python stands for a byte of a file's name (PEP 383).
        return f"\\x{code - 0xDC00:02x}"
    return ascii(found[0])[1:-1]
