"""Glob patterns over addresses, as pure text: ``**`` crosses folders, ``*``, ``?`` and ``[..]`` do not."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import lru_cache

from cnnbatch.errors import UserError

LONGEST = 4096
"""Characters of a pattern: as many as a path has on Linux; a bucket's key has at most 1,024."""

_WILDCARD = re.compile(r"[*?\[]")
_ANYTHING, _FOLDERS = ".*?", "(?:.*?/)??"


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
    """Return the regular expression of a pattern, to be used with `fullmatch`; raises `UserError`.

    Its time grows with the square of a name's length at worst, however many wildcards there are: what lies
    between two of them is taken where it comes first and never looked for again, for which there is no need,
    since the second one passes whatever is left.
    """
    if len(pattern) > LONGEST:
        raise UserError(
            f"input.url: expected a pattern of at most {LONGEST:,} characters, got {len(pattern):,}"
        )
    text = "".join(_stretch(*stretch) for stretch in _stretches(pattern))
    try:
        return re.compile(text, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"input.url: {pattern!r} is no pattern: {error}") from None


Stretch = tuple[str, list[str], bool]
"""What may be passed before it, its parts with a ``*`` between each two, whether the pattern ends there."""


def _stretches(pattern: str) -> Iterator[Stretch]:
    """Cut a pattern where folders may be crossed."""
    passed, parts, before = "", [""], "/"
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token.startswith("**"):
            yield passed, parts, False
            begins_folder = token == "**/" and before == "/"
            passed, parts = (
                (_FOLDERS, [""]) if begins_folder else (_ANYTHING, ["/" if token == "**/" else ""])
            )
        elif token == "*":
            parts.append("")
        else:
            parts[-1] += _one(token)
        before = token[-1]
    yield passed, parts, True


def _stretch(passed: str, parts: list[str], ends: bool) -> str:
    if not ends:
        return f"(?>{passed}{parts[0]}{''.join(f'(?>[^/]*?{part})' for part in parts[1:])})"
    if len(parts) == 1:
        return f"{passed}{parts[0]}"
    inner = "".join(f"(?>[^/]*?{part})" for part in parts[1:-1])
    return f"{passed}{parts[0]}{inner}[^/]*{parts[-1]}"


def _one(token: str) -> str:
    """Return the expression for one character."""
    if token == "?":
        return "[^/]"
    if len(token) > 2 and token[0] == "[":
        negated = token[1] in "!^"
        body = re.sub(r"[^\w-]", r"\\\g<0>", token[2 if negated else 1 : -1]).replace("--", r"\-\-")
        return f"(?!/)[{'^' if negated else ''}{body}]"
    return re.escape(token)
