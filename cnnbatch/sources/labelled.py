"""Truth from the key: the class that a pattern finds in it, or the folder that an image lies in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.errors import UserError
from cnnbatch.sources.key_patterns import KeyPattern, key_pattern
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.types import ImageRef, Shard, Source

FOLDER = r"([^/]+)/.+"
"""The first folder of a key, which is the class where folders are named by class."""

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
        """Return the class that a key tells."""
        return KeyPattern(self.pattern, self.field).group(key)

    def _unlabelled(self, count: int, first: str) -> UserError:
        return UserError(
            f"{self.field}: expected a class in the images' keys, but none of the first {count:,} has one, "
            f"as {first!r}\n"
            "  what to do: give input.label as a regular expression, matched from the key's start, its group "
            "the class; with input.format=folders each class is a folder below input.url"
        )


def labelled_by_pattern(source: Source, pattern: str) -> Labelled:
    """Return ``source`` with the labels that the job's pattern finds; `UserError` where it is none."""
    return Labelled(source, key_pattern(pattern, "input.label").pattern, "input.label")
