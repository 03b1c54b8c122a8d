"""Truth from the key: the class that a pattern finds in it, or the folder that an image lies in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import regex

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.types import ImageRef, Shard, Source

FOLDER = r"([^/]+)/.+"
"""The first folder of a key, which is the class where folders are named by class."""

LONGEST = 100_000
"""Characters of a pattern as its counted repetitions write it out, of which one takes some 300 bytes."""

_COUNTS = re.compile(r"\{(?:\d*,)?(\d{1,9})\d*,?\}")

LONGEST_S = 1.0
"""Seconds that a pattern may take at one key: some take years, which is not to be seen in them."""

_TRIED = 1000  # images without a label, from the first on, before the pattern is thought wrong


@dataclass(frozen=True)
class Labelled(SourceWrapper):
    """A source with labels: the first group of ``pattern`` where it matches the key from its start.

    A pattern without a group gives all that it matches; an image whose key it doesn't match, or with nothing
    in its group, has no label.
    """

    pattern: str
    field: str
    truth_schema: pa.Schema = truth.LABEL_SCHEMA

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images; a pattern that matches none of the first is a `UserError`."""
        unmatched, first = 0, ""
        checking = after is None
        for ref in self.source.refs(after):
            if checking and self.label(ref.key) is None:
                unmatched, first = unmatched + 1, first or ref.key
                if unmatched == _TRIED:
                    raise self._unlabelled(unmatched, first)
            else:
                checking = False
            yield ref
        if checking and unmatched:
            raise self._unlabelled(unmatched, first)

    def truth(self, shard: Shard) -> pa.Table:
        """Return ``image_id``, which is the key, and ``label``."""
        rows = [{"image_id": ref.key, "label": self.label(ref.key)} for ref in shard.refs]
        return truth.table(rows, self.truth_schema)

    def label(self, key: str) -> str | None:
        """Return the class that a key tells; raises UserError where the pattern does not come to an end."""
        try:
            found = regex.match(self.pattern, key, timeout=LONGEST_S)
        except TimeoutError:
            raise UserError(
                f"{self.field}: {self.pattern!r} takes more than {LONGEST_S:g} s at the key {key!r}\n"
                "  what to do: give one in which no repetition lies in another one, as in (a+)+"
            ) from None
        return (found[1 if found.re.groups else 0] or None) if found else None

    def _unlabelled(self, count: int, first: str) -> UserError:
        return UserError(
            f"{self.field}: expected a class in the images' keys, but none of the first {count:,} has one, "
            f"as {first!r}\n"
            "  what to do: give input.label as a regular expression, matched from the key's start, its group "
            "the class; with input.format=folders each class is a folder below input.url"
        )


def labelled_by_pattern(source: Source, pattern: str) -> Labelled:
    """Return ``source`` with the labels that the job's pattern finds; `UserError` where it is none."""
    written_out = len(pattern) * math.prod(max(1, int(count)) for count in _COUNTS.findall(pattern))
    if written_out > LONGEST:
        raise UserError(
            f"input.label: expected at most {LONGEST:,} characters with what its {{…}} repeat, "
            f"got up to {written_out:,}"
        )
    try:
        re.compile(pattern)
        regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"input.label: {pattern!r} is no regular expression: {error}\n"
            r"  what to do: give one that matches from the key's start, such as '(.+)_\d+\.jpg'"
        ) from None
    return Labelled(source, pattern, "input.label")
