"""The names of a set's classes, in a file beside its masks: a list of names, or CVAT's map of labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, join, parent
from cnnbatch.storage.text import decoded
from cnnbatch.truth import Class

CLASSES = "classes.txt"
"""A name a line; the first is that of the value 0."""

LABELMAP = "labelmap.txt"
"""The same as CVAT has it: ``name:red,green,blue:parts:actions``, and comments that begin with ``#``."""


def listed_classes(masks: str, storage: Storage) -> list[Class]:
    """Return the classes of such a file in a folder or beside it; none where there is no such file."""
    for name in (CLASSES, LABELMAP):
        for file in (join(masks, name), join(parent(masks), name)):
            try:
                lines = decoded(storage.read(file), "replace").splitlines()
            except (NotFound, Forbidden, Unreadable):
                continue
            return list(_classes(lines, name == LABELMAP))
    return []


def _classes(lines: Iterable[str], is_labelmap: bool) -> Iterator[Class]:
    names = (line.strip() for line in lines if line.strip())
    if is_labelmap:
        names = (line.partition(":")[0] for line in names if not line.startswith("#"))
    for number, name in enumerate(names):
        yield Class(name, number)
