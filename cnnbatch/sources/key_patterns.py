"""Regular expressions over the keys of images, from a job: checked, and of bounded time and memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import regex

from cnnbatch.errors import UserError

LONGEST = 100_000
"""Characters of a pattern as its counted repetitions write it out, of which one takes some 300 bytes."""

_COUNTS = re.compile(r"\{(?:\d*,)?(\d{1,9})\d*,?\}")

LONGEST_S = 1.0
"""Seconds that a pattern may take at one key: some take years, which is not to be seen in them."""


@dataclass(frozen=True)
class KeyPattern:
    """A pattern that is matched with a key from its start; ``field`` is that of the job that has it."""

    pattern: str
    field: str

    def group(self, key: str) -> str | None:
        """Return the pattern's first group, or all that it matches where it has none; None where it doesn't.

        None as well where there is nothing in the group. Raises UserError where the pattern does not come to
        an end.
        """
        try:
            found = regex.match(self.pattern, key, timeout=LONGEST_S)
        except TimeoutError:
            raise UserError(
                f"{self.field}: {self.pattern!r} takes more than {LONGEST_S:g} s at the key {key!r}\n"
                "  what to do: give one in which no repetition lies in another one, as in (a+)+"
            ) from None
        return (found[1 if found.re.groups else 0] or None) if found else None


def key_pattern(pattern: str, field: str) -> KeyPattern:
    """Return a job's pattern; `UserError` where it is none, or too long."""
    written_out = len(pattern) * math.prod(max(1, int(count)) for count in _COUNTS.findall(pattern))
    if written_out > LONGEST:
        raise UserError(
            f"{field}: expected at most {LONGEST:,} characters with what its {{…}} repeat, "
            f"got up to {written_out:,}"
        )
    try:
        re.compile(pattern)
        regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{field}: {pattern!r} is no regular expression: {error}\n"
            r"  what to do: give one that matches from the key's start, such as '(.+)_\d+\.jpg'"
        ) from None
    return KeyPattern(pattern, field)
