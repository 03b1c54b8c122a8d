"""Another source's images of some classes only, as if there were no others.

Which class an image has is asked of the truth while the images are listed; so are listings of sources whose
truth lies beside the images slower. An object that an earlier job found has the class that this job gave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.sources.wrapper import SourceWrapper
from cnnbatch.truth import OBJECT_LABEL, answer_of, classes_of, with_classes
from cnnbatch.types import ImageRef, Shard

_CHUNK = 4096  # refs whose labels are asked for at once


@dataclass(frozen=True)
class OfClasses(SourceWrapper):
    """The images of ``source`` whose label is one of ``names``, in the source's order."""

    names: tuple[str, ...]

    @property
    def truth_schema(self) -> pa.Schema | None:
        """The truth of the source, with the chosen classes where it knows its classes."""
        schema = self.source.truth_schema
        if schema is None and OBJECT_LABEL in self.source.columns.names:
            return None
        if schema is None or answer_of(schema) != "label":
            raise UserError(
                "input.classes: these images have no label to choose by\n"
                "  what to do: leave it out, or say where the labels are (input.label, input.truth)"
            )
        known = {one.name: one for one in classes_of(schema)}
        if known and (strange := [name for name in self.names if name not in known]):
            near = nearest(strange[0], known)
            raise UserError(
                f"input.classes: expected some of {', '.join(known)}, got {strange[0]!r}"
                f"{f'; did you mean {near}?' if near else ''}"
            )
        return with_classes(schema, [known[name] for name in known if name in self.names])

    def refs(self, after: ImageRef | None = None) -> Iterator[ImageRef]:
        """Stream the images of the classes; an input without any is a `UserError`."""
        found, refs = after is not None, self.source.refs(after)
        predicted = self.truth_schema is None
        while chunk := tuple(islice(refs, _CHUNK)):
            labels = [ref.columns[OBJECT_LABEL] for ref in chunk] if predicted else self._labels(chunk)
            for ref, label in zip(chunk, labels, strict=True):
                if label in self.names:
                    found = True
                    yield ref
        if not found:
            raise UserError(f"input.classes: no image is one of {', '.join(self.names)}")

    def _labels(self, refs: tuple[ImageRef, ...]) -> list[str | None]:
        truth = self.source.truth(Shard(0, refs))
        return [None] * len(refs) if truth is None else truth["label"].to_pylist()

    def truth(self, shard: Shard) -> pa.Table | None:
        """Return the source's truth, with the chosen classes."""
        truth, schema = self.source.truth(shard), self.truth_schema
        return None if truth is None or schema is None else truth.replace_schema_metadata(schema.metadata)
