"""Folders that say which part of a set their images are, as train and test, and not which class they show.

They may lie below other folders that hold nothing else (``archive/Train/cats``), come twice
(``training_set/training_set/cats``), lie inside the classes (``cats/train``), or have one beginning
(``seg_train``, ``seg_test``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
_BEGUN = re.compile(rf"([^/]*[-_]|\d+[. ]*)({_WORDS}){_ADDED}", re.IGNORECASE)


def inner_folder(beginning: str = "") -> str:
    """What finds the first folder of a key that is the class and no part's name."""
    folders = rf"(?i:{beginning}(?:{_WORDS}){_ADDED}/)"
    return rf"(?:{folders}+|(?!{folders}))([^/]+)/.+"


_MOST_FOLDERS = 64  # beside each other; where there are more, they are classes
_MOST_FILES = 1000  # before a folder; a page of a bucket's listing
_MOST_DEPTH = 3
_LAST = "\U0010ffff"  # behind every name


@dataclass(frozen=True, slots=True)
class Splits:
    """The parts that folders of an input are named by; ``others`` are folders beside them.

    ``around`` are the folders that hold them all, each the only one where it lies, with a slash behind;
    ``beginning`` is a pattern of what stands before the word in each of their names.
    """

    parts: frozenset[str]
    others: tuple[str, ...] = ()
    around: str = ""
    beginning: str = ""

    @property
    def pattern(self) -> str:
        """What finds the class in a key below the input's root."""
        return re.escape(self.around) + inner_folder(self.beginning)


def part_of(name: str) -> str:
    """Return the part that a folder's or a column's name stands for; empty where it stands for none."""
    found = _NAME.fullmatch(name.strip())
    return PARTS[found[1].lower()] if found else ""


def part_in(key: str) -> str:
    """Return the part that the first so named folder of a key stands for; empty where there is none.

    A folder whose name only ends so (``seg_train``) counts where no other does.
    """
    folders = key.split("/")[:-1]
    found = next(filter(None, map(part_of, folders)), "")
    return found or next((PARTS[name[2].lower()] for one in folders if (name := _BEGUN.fullmatch(one))), "")


def splits_below(root: str, storage: Storage) -> Splits | None:
    """Return how folders below ``root`` say the parts; None unless they have training and another part."""
    around = ""
    for _ in range(_MOST_DEPTH):
        place = join(root, around.rstrip("/")) if around else root
        names = list(folders_in(place, storage))
        if (found := _named(names)) is not None:
            return replace(found, around=around)
        if len(names) != 1:
            break
        around += f"{names[0]}/"
    if not names or len(names) > _MOST_FOLDERS:
        return None
    inside = _named(list(folders_in(join(place, names[0]), storage)))
    return None if inside is None else replace(inside, others=(), around=around)


def _named(names: Sequence[str]) -> Splits | None:
    """Return the parts among folders beside each other: by whole names, else by names of one beginning."""
    whole = {name: part for name in names if (part := part_of(name))}
    by_beginning: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        if begun := _BEGUN.fullmatch(name):
            beginning = re.sub(r"\d+", r"\\d+", re.escape(begun[1].lower()))  # Numbers may differ.
            by_beginning[beginning][name] = PARTS[begun[2].lower()]
    if _are_parts(whole):
        return _splits(names, whole)
    found = [one for one in by_beginning.items() if _are_parts(one[1])]
    # Of several (cat_train, cat_test, dog_train, dog_test) none says the parts alone.
    return _splits(names, found[0][1], found[0][0]) if len(found) == 1 else None


def _are_parts(named: Mapping[str, str]) -> bool:
    return "train" in named.values() and len({*named.values()}) > 1


def _splits(names: Sequence[str], named: Mapping[str, str], beginning: str = "") -> Splits:
    others = tuple(name for name in names if name not in named)
    return Splits(frozenset(named.values()), others, beginning=beginning)


def folders_in(root: str, storage: Storage) -> Iterator[str]:
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
