"""Glob patterns over addresses, as pure text: ``**`` crosses folders, ``*``, ``?`` and ``[..]`` do not."""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache

from cnnbatch.errors import UserError

_WILDCARD = re.compile(r"[*?\[]")


def has_wildcard(address: str) -> bool:
    """Say whether an address is a pattern."""
    return bool(_WILDCARD.search(address))


def first_wildcard(address: str, start: int = 0) -> int | None:
    """Return the place of the first wildcard from ``start`` on; None where there is none."""
    found = _WILDCARD.search(address, start)
    return None if found is None else found.start()


def split(address: str, wildcard: int) -> tuple[str, str]:
    """Return the folder before the wildcard at a place, and the pattern below it."""
    cut = address.rindex("/", 0, wildcard)
    return address[:cut] or "/", address[cut + 1 :]


def names_suffix(pattern: str) -> bool:
    """Say whether a pattern tells which suffix it wants, as ``*.dat`` does and ``**`` does not."""
    name = posixpath.basename(pattern)
    if not has_wildcard(name):
        return True
    stem, dot, suffix = name.rpartition(".")
    return bool(dot) and has_wildcard(stem) and bool(suffix.strip("*?"))


@lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, to be used with `fullmatch`; raises `UserError`."""
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", pattern, re.DOTALL)
    text, before = "", "/"
    for token in tokens:
        text += _token(token, begins_segment=before == "/")
        before = token[-1]
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise UserError(f"input.url: {pattern!r} is no pattern: {error}") from None


def _token(token: str, begins_segment: bool) -> str:
    if token == "**/":
        return "(?:.*/)?" if begins_segment else ".*/"
    if token == "**":
        return ".*"
    if token == "*":
        return "[^/]*"
    if token == "?":
        return "[^/]"
    if len(token) > 2 and token[0] == "[":
        negated = token[1] in "!^"
        body = re.sub(r"[^\w-]", r"\\\g<0>", token[2 if negated else 1 : -1]).replace("--", r"\-\-")
        return f"(?!/)[{'^' if negated else ''}{body}]"
    return re.escape(token)
