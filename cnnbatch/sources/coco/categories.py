"""The categories of a COCO file: its classes, and the root of a tree that is named as one of its children is.

Some tools write the whole set as a category above all others and call it like the only one that counts:
``{id: 0, name: helmet, supercategory: none}`` beside ``{id: 1, name: helmet, supercategory: helmet}``. Both
are one class, with the child's id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnnbatch.truth import Class


@dataclass(frozen=True, slots=True)
class Category:
    """One entry of ``categories``, at its ``place`` there; ``above`` is its supercategory.

    ``is_thing`` is what a panoptic file says of it.
    """

    place: int
    id: int | str
    name: str
    above: str | None
    is_thing: bool = True


@dataclass(frozen=True, slots=True)
class Categories:
    """The classes in the file's order, the name of every id, and the ids of stuff in a panoptic file."""

    classes: tuple[Class, ...]
    names: Mapping[int | str, str]
    stuff: frozenset[int | str] = frozenset()


class Ambiguous(Exception):
    """Two entries have the same id or name, and neither is above the other."""

    def __init__(self, first: Category, second: Category, of: str) -> None:
        super().__init__(f"categories[{first.place}] and categories[{second.place}]")
        self.where = str(self)
        self.what = f"have the same {of} {getattr(second, of)!r}"


def categories_of(entries: Sequence[Category]) -> Categories:
    """Return the classes of a file's entries; raises Ambiguous."""
    by_id: dict[int | str, Category] = {}
    for one in entries:
        if (first := by_id.setdefault(one.id, one)) is not one:
            raise Ambiguous(first, one, "id")
    named: dict[str, list[Category]] = defaultdict(list)
    for one in entries:
        named[one.name].append(one)
    kept = {name: _lowest(some, named) for name, some in named.items()}
    classes = tuple(Class(one.name, one.id) for one in entries if kept[one.name] is one)
    stuff = frozenset(one.id for one in entries if not one.is_thing)
    return Categories(classes, {one.id: one.name for one in entries}, stuff)


def _lowest(some: Sequence[Category], named: Mapping[str, Sequence[Category]]) -> Category:
    """Return the one of several entries of a name that lies below all others of it."""
    if len(some) == 1:
        return some[0]
    below = [one for one in some if one.name in _all_above(one, named)]
    if len(some) != 2 or len(below) != 1:
        raise Ambiguous(some[0], some[1], "name")
    return below[0]


def _all_above(one: Category, named: Mapping[str, Sequence[Category]]) -> set[str]:
    """Return the names of an entry's supercategory, of that one's, and so on."""
    found, waiting = set[str](), [one.above]
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found.add(name)
            waiting += [other.above for other in named.get(name, ())]
    return found
