"""Darknet's .cfg as sections whose values are checked as they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from cnnbatch.errors import UserError

KINDS = ("net", "convolutional", "maxpool", "upsample", "dropout", "route", "shortcut", "yolo")
"""The sections that are known."""

_LONGEST_CFG = 1 << 20  # characters; YOLOv4's has 12 thousand
_LARGEST_NUMBER = 65536  # of a whole number in a .cfg
_COMMENT = re.compile("[#;]")
_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class CfgSection:
    """A section of a .cfg: its kind, its options as text, and its line in the file ``where``.

    ``lines`` has each option's line. The methods read a value and raise `UserError`, with file and line,
    where it is missing or is not what was asked for.
    """

    kind: str
    options: Mapping[str, str]
    line: int
    where: str = "the .cfg"
    lines: Mapping[str, int] = field(default_factory=dict)

    def error(self, option: str, expected: str) -> UserError:
        """Return the error for an option: where it stands, what was ``expected`` and what came."""
        came = f"came {self.options[option][:80]!r}" if option in self.options else "but it is not there"
        place = f"{self.where}:{self.lines.get(option, self.line)}: [{self.kind}] {option}"
        return UserError(f"{place}: expected {expected}, {came}\n  what to do: mend that line of the .cfg")

    def text(self, option: str, default: str | None = None) -> str:
        """Return an option's text; without ``default`` it has to be there."""
        value = self.options.get(option, default)
        if value is None:
            raise self.error(option, "a value")
        return value

    def word(self, option: str, known: Iterable[str], default: str | None = None) -> str:
        """Return an option that is one of the words ``known``."""
        value = self.text(option, default)
        if value not in known:
            raise self.error(option, f"one of {', '.join(known)}")
        return value

    def integer(
        self, option: str, default: int | None = None, least: int = 1, most: int = _LARGEST_NUMBER
    ) -> int:
        """Return an option that is a whole number from ``least`` to ``most``."""
        text = self.text(option, None if default is None else str(default))
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise self.error(option, f"a whole number from {least} to {most}")
        return int(text)

    def number(self, option: str, default: float) -> float:
        """Return an option that is one number."""
        if option not in self.options:
            return default
        (value, *more) = self.numbers(option)
        if more:
            raise self.error(option, "one number")
        return value

    def integers(self, option: str) -> tuple[int, ...]:
        """Return an option that is whole numbers with commas between them."""
        items = self.text(option).split(",")
        if not all(_WHOLE.fullmatch(item) for item in items):
            raise self.error(option, "whole numbers with commas between them")
        return tuple(int(item) for item in items)

    def numbers(self, option: str) -> tuple[float, ...]:
        """Return an option that is numbers with commas between them."""
        items = self.text(option).split(",")
        if not all(_DECIMAL.fullmatch(item) for item in items):
            raise self.error(option, "numbers with commas between them")
        return tuple(float(item) for item in items)


def parse_cfg(text: str, where: str) -> list[CfgSection]:
    """Return the sections of a .cfg in their order; ``where`` names the file in errors.

    As in Darknet, blanks count nowhere; ``#`` and ``;`` begin a comment.

    Raises:
        UserError: a line is neither ``[kind]`` nor ``option=value``, a kind is unknown, an option stands
            before the first section or has two values, or the text is longer than any real .cfg.

    Source: read_cfg in https://github.com/AlexeyAB/darknet/blob/master/src/parser.c
    """
    if len(text) > _LONGEST_CFG:
        raise UserError(f"{where}: expected a Darknet .cfg, but it has more than {_LONGEST_CFG} characters")
    whole = text.removeprefix("\ufeff").splitlines()
    lines = [(number, bare) for number, line in enumerate(whole, 1) if (bare := _bare(line))]
    if not lines or not lines[0][1].startswith("["):
        line, came = lines[0] if lines else (1, "")
        raise UserError(
            f"{where}:{line}: expected a Darknet .cfg, that begins with [net], came {came[:80]!r}"
        )
    starts = [index for index, (_, bare) in enumerate(lines) if bare.startswith("[")]
    return [_section(lines[start:end], where) for start, end in pairwise([*starts, len(lines)])]


def _bare(line: str) -> str:
    """Return a line without its comment and without any blank."""
    return "".join(_COMMENT.split(line, maxsplit=1)[0].split())


def _section(lines: list[tuple[int, str]], where: str) -> CfgSection:
    """Read one section from its numbered lines; the first has its kind."""
    (line, header), *entries = lines
    kind = header[1:-1]
    if not header.endswith("]") or kind not in KINDS:
        known = ", ".join(f"[{name}]" for name in KINDS)
        raise UserError(
            f"{where}:{line}: expected one of the sections {known}, came {header[:80]!r}\n"
            "  what to do: use a network of these sections only"
        )
    options: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, entry in entries:
        name, value = _option(entry, f"{where}:{number}")
        # Darknet takes the first of two, OpenCV the last.
        if options.setdefault(name, value) != value:
            raise UserError(
                f"{where}:{number}: expected one value of {name}, came {options[name]!r} on line "
                f"{numbers[name]} and {value!r} here\n  what to do: remove one of the two"
            )
        numbers.setdefault(name, number)
    return CfgSection(kind, options, line, where, numbers)


def _option(entry: str, place: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not (name and equals and value):
        raise UserError(
            f"{place}: expected [section] or option=value, came {entry[:80]!r}\n"
            "  what to do: mend that line of the .cfg"
        )
    return name, value
