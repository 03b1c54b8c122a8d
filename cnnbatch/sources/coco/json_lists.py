"""The lists of one large JSON object, element by element: in memory are one element and a block of text.

The standard library's decoder finds where an element ends, so an element that a block cuts is decoded
twice; it also bounds how deep values nest.
"""

from __future__ import annotations

import json
import re
from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from cnnbatch.storage.text import MARK_BYTES, encoding_of

_BLOCK = 4 << 20  # bytes of a read: few requests, should the file lie in a bucket
_LARGEST = 8 << 20  # characters of one element, which as lists of nothing take 25 times that
_SPACE = re.compile(r"[ \t\n\r]*")


class NotJson(Exception):
    """The file is no JSON object, or ends too early; the text says where."""


Element = tuple[Any, str]
"""A value, and its text."""


def sections(file: BinaryIO) -> Iterator[tuple[str, Iterator[Element]]]:
    """Yield each key of the object with the elements of its list; none where its value is no list.

    Elements that are left are skipped. Raises `NotJson`.
    """
    text = _Text(file)
    text.take("{")
    last = text.take("}") if text.peek() == "}" else ","
    while last == ",":
        name, _ = text.value()
        text.take(":")
        items = text.items()
        yield str(name), items
        for _ in items:
            pass
        last = text.take(",", "}")
    if text.peek():
        text.fail("there is more behind its end")


class _Text:
    """A file's text, of which a part is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder: IncrementalDecoder | None = None
        self._json = json.JSONDecoder(parse_constant=self._constant)
        self._text, self._at, self._before = "", 0, 0

    def peek(self) -> str:
        """Return the next character behind white space; "" at the end."""
        while True:
            if space := _SPACE.match(self._text, self._at):
                self._at = space.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, *expected: str) -> str:
        """Pass one of these characters, and return it."""
        found = self.peek()
        if found not in expected:
            self.fail(f"expected {' or '.join(expected)}, got {found or 'its end'}")
        self._at += 1
        return found

    def items(self) -> Iterator[Element]:
        """Yield the elements of the list that comes; any other value is passed."""
        if self.peek() != "[":
            self.value()
            return
        self.take("[")
        last = self.take("]") if self.peek() == "]" else ","
        while last == ",":
            yield self.value()
            last = self.take(",", "]")

    def value(self) -> Element:
        """Pass a whole value, and return it with its text."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                place = self._before + error.pos
                if not self._more():
                    self.fail(error.msg, place)
            except RecursionError:
                self.fail("values nest too deeply")
            except ValueError as error:  # A number of thousands of digits.
                self.fail(str(error))
            else:
                if end < len(self._text) or not self._more():
                    start, self._at = self._at, end
                    return value, self._text[start:end]

    def fail(self, why: str, place: int | None = None) -> NoReturn:
        """Raise `NotJson` with the place, which is here unless it is given."""
        raise NotJson(
            f"{why}, at character {self._before + self._at if place is None else place:,}"
        ) from None

    def _more(self) -> bool:
        """Read on, as much again as is not used yet; return False at the end."""
        rest = self._text[self._at :]
        if len(rest) > _LARGEST:
            self.fail(f"one element has more than {_LARGEST:,} characters")
        data = self._file.read(max(_BLOCK, len(rest)))
        if self._decoder is None:
            self._decoder = getincrementaldecoder(encoding_of(data[:MARK_BYTES]))()
        try:
            read = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self.fail(f"UTF-8 was expected, {error.reason}")
        self._before, self._text, self._at = self._before + self._at, rest + read, 0
        return bool(data)

    def _constant(self, name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")
