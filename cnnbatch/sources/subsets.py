"""A part of another source's images, set apart for training, validating or testing.

Which part an image belongs to follows from its key, from its folder or from a column, never from the
images beside it, so that it stays where it is when others come; only ``per_class`` has to see all labels.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError
from cnnbatch.sources.files.splits import part_in, part_of
from cnnbatch.sources.key_patterns import KeyPattern, key_pattern
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.truth import answer_of
from cnnbatch.types import ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Subset

_CHUNK = 4096  # refs whose labels are asked for at once


def part_by_hash(key: str, validation: float, test: float, seed: int = 0) -> str:
    """Return the part of a key: the first shares of the hashes test and validate, the rest trains."""
    place = fraction(key, f"part {seed}")
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def fold_of(ref: ImageRef, folds: int, seed: int = 0, group: str | None = None) -> int:
    """Return the fold that an image validates in: that of its ``group`` or picture, where it is in one."""
    picture = ref.columns.get("image") if "box" in ref.columns else None
    return int(fraction(str(group or picture or ref.key), f"fold {seed}") * folds)


def fraction(key: str, purpose: str) -> float:
    """Return a number in [0, 1) that follows from a key, another one for every ``purpose``."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=purpose.encode()[:64]).digest()
    return int.from_bytes(digest) / 2**64


@dataclass(frozen=True)
class SubsetSource(SourceWrapper):
    """The images of ``source`` that belong to ``rule.part``, in the source's order."""

    rule: Subset

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the part's images; an input without any is a `UserError`."""
        found = after is not None
        for ref in self.source.refs(after):
            if self._belongs(ref):
                found = True
                yield ref
        if not found:
            raise UserError(
                f"input.subset: no image belongs to {self.rule.part} by {self.rule.by}\n"
                "  what to do: give more images, larger shares (train.validation, train.test), or another "
                "input.subset.seed"
            )

    def _belongs(self, ref: ImageRef) -> bool:
        return self._part(ref) == self.rule.part

    def _part(self, ref: ImageRef) -> str:
        """Return the part of an image; empty where it belongs to none."""
        rule, given = self.rule, self._given(ref)
        if given != "train":
            return given
        group = self._group(ref)
        part = part_by_hash(group or ref.key, rule.validation, rule.test, rule.seed)
        if part == "test":
            return part
        if rule.per_class is not None and ref.key not in self._chosen:
            return "test" if rule.rest == "test" else ""
        if rule.folds is not None:
            part = "validation" if fold_of(ref, rule.folds, rule.seed, group) == rule.fold else "train"
        left_out = (
            part == "train" and rule.share < 1 and fraction(ref.key, f"share {rule.seed}") >= rule.share
        )
        return "" if left_out else part

    def _group(self, ref: ImageRef) -> str | None:
        """Return what an image's key has in common with those that are to be in the same part."""
        if self.rule.group is None:
            return None
        found = self._pattern.group(ref.key)
        if found is None:
            raise UserError(
                f"input.subset.group: {self.rule.group!r} does not match the key {ref.key!r}\n"
                "  what to do: give one that matches every key from its start; its group is what images of "
                "one part have in common"
            )
        return found

    @cached_property
    def _pattern(self) -> KeyPattern:
        return key_pattern(self.rule.group or "", "input.subset.group")

    def _given(self, ref: ImageRef) -> str:
        """Return what the input itself says of an image's part; train where it says nothing."""
        by = self.rule.by
        if by == "hash":
            return "train"
        if by == "folder":
            return part_in(ref.key)
        if by not in self.columns.names:
            raise UserError(
                f"input.subset.by: expected hash, folder or a column of input.keep, got {by!r}; the input "
                f"keeps {', '.join(self.columns.names) or 'none'}"
            )
        return part_of(str(ref.columns.get(by)))

    @cached_property
    def _chosen(self) -> frozenset[str]:
        """Return the keys of the first few images of each class that are not set apart to test, by hash."""
        few: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for key, label in self._labelled():
            heapq.heappush(few[label], (-fraction(key, f"few {self.rule.seed}"), key))
            if len(few[label]) > (self.rule.per_class or 0):
                heapq.heappop(few[label])
        return frozenset(key for kept in few.values() for _, key in kept)

    def _labelled(self) -> Iterator[tuple[str, str]]:
        rule = self.rule
        training = (
            ref
            for ref in self.source.refs()
            if self._given(ref) == "train"
            and part_by_hash(self._group(ref) or ref.key, rule.validation, rule.test, rule.seed) != "test"
        )
        while chunk := tuple(islice(training, _CHUNK)):
            truth: Any = self.source.truth(Shard(0, chunk))
            if truth is None or answer_of(truth.schema) != "label":
                raise UserError("input.subset.per_class: the images have no labels to count by")
            labels = truth["label"].to_pylist()
            yield from (
                (ref.key, label) for ref, label in zip(chunk, labels, strict=True) if label is not None
            )
