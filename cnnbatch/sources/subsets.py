"""A part of another source's images, set apart for training, validating or testing.

Which part an image belongs to follows from its key, from its folder or from a column, and not from the
images beside it, so that it stays where it is when others come; unless the job has it cut by order
(``cut``), or the first few of each class (``per_class``).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from cnnbatch.errors import UserError
from cnnbatch.sources.cuts import ClassCut, Cut, Place, cut_by, fraction
from cnnbatch.sources.files.splits import part_in, part_of
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.truth import answer_of
from cnnbatch.types import ImageRef, Shard

if TYPE_CHECKING:
    from cnnbatch.config.input import Subset

_CHUNK = 4096  # refs whose labels are asked for at once


@dataclass(frozen=True)
class SubsetSource(SourceWrapper):
    """The images of ``source`` that belong to ``rule.part``, in the source's order."""

    rule: Subset

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the part's images; an input without any is a `UserError`."""
        found = after is not None
        for ref, part in self._parts(after):
            if part == self.rule.part:
                found = True
                yield ref
        if not found:
            raise UserError(
                f"input.subset: no image belongs to {self.rule.part} by {self.rule.by}\n"
                "  what to do: give more images, larger shares (train.validation, train.test), or another "
                "input.subset.seed"
            )

    def _parts(self, after: ImageRef | None) -> Iterator[tuple[ImageRef, str]]:
        """Yield the images behind ``after`` with their part, which is empty where they belong to none."""
        if self.rule.whole_classes:
            yield from self._parts_of_classes(after)
            return
        cut, behind = self._cut(), after is None
        for ref in self.source.refs(after if self.rule.cut == "hash" else None):
            part = self._part(ref, partial(cut.place, ref))
            if behind or self.rule.cut == "hash":
                yield ref, part
            behind = behind or (after is not None and ref.key == after.key)
        if not behind and self.rule.cut != "hash" and after is not None:
            raise UserError(
                f"input.subset: the input no longer holds {after.key!r}, behind which the listing goes on\n"
                "  what to do: give the images as they were, or a new output"
            )

    def _parts_of_classes(self, after: ImageRef | None) -> Iterator[tuple[ImageRef, str]]:
        """Yield the images behind ``after`` with the parts of their classes, the others with none."""
        cut = self._cut_of_classes
        for ref, label in self._with_labels(self.source.refs(after)):
            known = label is not None or self._given(ref) != "train"
            yield ref, self._part(ref, partial(cut.of, label or "")) if known else ""

    @cached_property
    def _cut_of_classes(self) -> ClassCut:
        """Return what cuts the classes of those images whose part the input does not say."""
        training = (ref for ref in self.source.refs() if self._given(ref) == "train")
        return ClassCut(self.rule, {label for _, label in self._with_labels(training) if label is not None})

    def _cut(self) -> Cut:
        """Return what cuts the images of one listing."""
        return cut_by(self.rule, lambda: (ref for ref in self.source.refs() if self._given(ref) == "train"))

    def _part(self, ref: ImageRef, place: Callable[[], Place]) -> str:
        """Return the part of an image; empty where it belongs to none."""
        rule, given = self.rule, self._given(ref)
        if given != "train":
            return given
        part, fold = place()
        if part == "test":
            return part
        if rule.per_class is not None and ref.key not in self._chosen:
            return "test" if rule.rest == "test" else ""
        if rule.folds is not None:
            part = "validation" if fold == rule.fold else "train"
        left_out = (
            part == "train" and rule.share < 1 and fraction(ref.key, f"share {rule.seed}") >= rule.share
        )
        return "" if left_out else part

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
        cut = self._cut()
        training = (
            ref for ref in self.source.refs() if self._given(ref) == "train" and cut.place(ref).part != "test"
        )
        yield from ((ref.key, label) for ref, label in self._with_labels(training) if label is not None)

    def _with_labels(self, refs: Iterator[ImageRef]) -> Iterator[tuple[ImageRef, str | None]]:
        """Yield images with their classes; raises UserError where the input has none."""
        while chunk := tuple(islice(refs, _CHUNK)):
            truth: Any = self.source.truth(Shard(0, chunk))
            if truth is None or answer_of(truth.schema) != "label":
                field = "whole_classes" if self.rule.whole_classes else "per_class"
                raise UserError(
                    f"input.subset.{field}: the images have no classes to be cut by\n"
                    "  what to do: put them into folders named by class, or give input.label"
                )
            yield from zip(chunk, truth["label"].to_pylist(), strict=True)
