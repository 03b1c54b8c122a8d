"""Folders that say which part of a set their images are, as train and test, and not which class they show.

They may lie below other folders that hold nothing else (``archive/Train/cats``), come twice
(``training_set/training_set/cats``), or lie inside the classes (``cats/train``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage import Forbidden, NotFound, Storage, Unreadable, join

PARTS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What folders and columns call the parts; they may add ``set``, a year and the like."""

_WORDS = "|".join(sorted(PARTS, key=len, reverse=True))
_ADDED = r"(?:[-_ ]?(?:set|data|dataset|images|imgs|split|folder))?(?:[-_ ]?\d{4})?"
_NAME = re.compile(rf"({_WORDS}){_ADDED}", re.IGNORECASE)
_FOLDERS = rf"(?i:(?:{_WORDS}){_ADDED}/)"

INNER_FOLDER = rf"(?:{_FOLDERS}+|(?!{_FOLDERS}))([^/]+)/.+"
"""The first folder of a key that is the class and no part's name, where folders are named by parts."""

_MOST_FOLDERS = 64  # beside each other; where there are more, they are classes
_MOST_FILES = 1000  # before a folder; a page of a bucket's listing
_MOST_DEPTH = 3
_LAST = "\U0010ffff"  # behind every name


@dataclass(frozen=True, slots=True)
class Splits:
    """The parts that folders of an input are named by; ``others`` are folders beside them.

    ``around`` are the folders that hold them all, each the only one where it lies, with a slash behind.
    """

    parts: frozenset[str]
    others: tuple[str, ...] = ()
    around: str = ""

    @property
    def pattern(self) -> str:
        """What finds the class in a key below the input's root."""
        return re.escape(self.around) + INNER_FOLDER


def part_of(name: str) -> str:
    """Return the part that a folder's or a column's name stands for; empty where it stands for none."""
    found = _NAME.fullmatch(name.strip())
    return PARTS[found[1].lower()] if found else ""


def part_in(key: str) -> str:
    """Return the part that the first so named folder of a key stands for; empty where there is none."""
    return next((part for folder in key.split("/")[:-1] if (part := part_of(folder))), "")


def splits_below(root: str, storage: Storage) -> Splits | None:
    """Return how folders below ``root`` say the parts; None unless they have training and another part."""
    around = ""
    for _ in range(_MOST_DEPTH):
        place = join(root, around.rstrip("/")) if around else root
        names = list(_folders(place, storage))
        if (parts := _named(names)) is not None:
            return Splits(parts, tuple(name for name in names if not part_of(name)), around)
        if len(names) != 1:
            break
        around += f"{names[0]}/"
    if not names or len(names) > _MOST_FOLDERS:
        return None
    inside = list(_folders(join(place, names[0]), storage))
    parts = _named(inside)
    return None if parts is None else Splits(parts, (), around)


def _named(names: Sequence[str]) -> frozenset[str] | None:
    parts = frozenset(filter(None, map(part_of, names)))
    return parts if "train" in parts and len(parts) > 1 else None


def _folders(root: str, storage: Storage) -> Iterator[str]:
    """Yield the folders directly below a root, one more than the most that are looked at; none if hidden."""
    after = None
    try:
        for _ in range(_MOST_FOLDERS + 1):
            name = _next_folder(root, after, storage)
            if name is None:
                return
            if not name.startswith((".", "__MACOSX")):
                yield name
            after = join(root, name, _LAST)
    except (NotFound, Forbidden, Unreadable, UserError, EnvironmentFault):
        return


def _next_folder(root: str, after: str | None, storage: Storage) -> str | None:
    for entry in islice(storage.list(root, after), _MOST_FILES):
        name, slash, _ = entry.uri[len(root) :].lstrip("/").partition("/")
        if slash:
            return name
    return None
