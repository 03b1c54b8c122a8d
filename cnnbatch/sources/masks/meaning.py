"""What the values of masks mean: ``input.relabel`` and ``input.ignore`` over the classes that a set lists.

A number on the left of ``relabel`` is a value of the file, one on its right the number that it becomes; the
set's list names the numbers that come of it, where it does not the rule for that value. A name on the left is
a class of that list, one on the right its new name, and classes of one name are one class.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.humanize import meant
from cnnbatch.images.class_map import NONE, Numbers
from cnnbatch.truth import MAP_SCHEMA, Class, with_classes, with_ignored

VALUES = 1 << 16
"""How many values a mask may have."""

LEFT_OUT = -1

_NUMBERS = re.compile(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?")
_VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored")
"""What sets call the value of pixels without a class."""
_SHOWN = 20  # of a set's classes, in a message


@dataclass(frozen=True)
class Meaning:
    """The classes of maps by their numbers, the numbers that do not count, and what becomes of values.

    ``moved`` are the values of files that become other numbers, with these. ``named``: the set names its
    classes; else each number is a class of its own.
    """

    classes: tuple[Class, ...]
    ignored: frozenset[int]
    moved: tuple[tuple[int, int], ...] = ()
    named: bool = True

    @property
    def schema(self) -> pa.Schema:
        """The columns of the ground truth, with what its numbers mean."""
        return with_ignored(with_classes(MAP_SCHEMA, self.classes), self.ignored)

    def of(self, values: Numbers) -> Numbers:
        """Return the map (H, W) of a file's values; of 8 bits where these and all numbers are."""
        if not self.moved:
            return values
        table = self._numbers[: np.iinfo(values.dtype).max + 1]
        small = values.dtype == np.uint8 and table.max() <= NONE
        found: Numbers = (table.astype(np.uint8) if small else table)[values]
        return found

    def strange(self, numbers: Numbers) -> list[int]:
        """Return the numbers of a map that no class has and that are not ignored, ascending."""
        if self._known[numbers].all():
            return []
        there = np.unique(numbers)
        found: list[int] = there[~self._known[there]].tolist()
        return found

    @cached_property
    def _numbers(self) -> NDArray[np.uint16]:
        """The number that each value becomes."""
        numbers = np.arange(VALUES, dtype=np.uint16)
        for value, number in self.moved:
            numbers[value] = number
        return numbers

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        known = np.zeros(VALUES, np.bool_)
        known[[*(int(one.id) for one in self.classes), *self.ignored]] = True
        return known


def meaning_of(input: Input, listed: Sequence[Class]) -> Meaning:
    """Return what the values of a job's masks mean; ``listed`` are the classes that the set names, if any.

    Raises UserError for a class that is not there, and for what is no relabelling.
    """
    given = {int(one.id): one.name for one in listed}
    _require_shifted(input.relabel, given.get(0, ""))
    rules = _rules(input.relabel).through(given)
    if not listed and not rules.names:
        given = {number: str(number) for number in range(NONE)}
    _require_known(rules.classes, given.values(), "input.relabel")
    classes, numbers = _relabelled(rules, given)
    void = NONE if NONE not in classes else VALUES - 1
    ignored = {void} if (numbers == LEFT_OUT).any() or void == NONE else set()
    ignored |= set(_ignored(input.ignore, classes))
    kept = tuple(Class(name, number) for number, name in sorted(classes.items()) if number not in ignored)
    numbers = np.where(numbers == LEFT_OUT, void, numbers)
    moved = np.flatnonzero(numbers != np.arange(VALUES))
    pairs = tuple(zip(moved.tolist(), numbers[moved].tolist(), strict=True))
    return Meaning(kept, frozenset(ignored), pairs, bool(listed or rules.names))


def _require_shifted(relabel: Mapping[str, int | str | None] | str, first: str) -> None:
    """Refuse a list that names what ``reduce_zero_label`` leaves out: each value would have a wrong name."""
    if isinstance(relabel, str) and first.lower() in _VOID:
        raise UserError(
            f"input.relabel={relabel}: expected the list of classes to begin with that of the value 1, which "
            f"becomes 0; it begins with {first!r}\n"
            f"  what to do: remove that line, or say input.ignore=[{first}] and no input.relabel"
        )


@dataclass(frozen=True)
class _Rules:
    """``numbers`` of values, -1 where they are left out; ``names`` of values; other names of ``classes``."""

    numbers: dict[int, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    classes: dict[str, str | None] = field(default_factory=dict)

    def through(self, given: Collection[int]) -> _Rules:
        """Return the rules with values named that become a number which is not ``given``, but named here."""
        named = {
            value: self.names[number]
            for value, number in self.numbers.items()
            if number in self.names and number not in given
        }
        return replace(self, names=self.names | named)


def _rules(relabel: Mapping[str, int | str | None] | str) -> _Rules:
    """Return what ``input.relabel`` says, value by value."""
    if isinstance(relabel, str):
        relabel = {"0": None, f"1-{NONE - 1}": f"0-{NONE - 2}"}
    rules = _Rules()
    for key, target in relabel.items():
        if _NUMBERS.fullmatch(key):
            _of_values(rules, key, target)
        elif isinstance(target, int):
            raise UserError(
                f"input.relabel: the class {key!r} becomes a class or nothing, got the number {target}\n"
                "  what to do: give the name that it is to have, null to leave it out, or a value on the left"
            )
        else:
            rules.classes[key] = target
    return rules


def _of_values(rules: _Rules, key: str, target: int | str | None) -> None:
    values = _range(key)
    if target is None:
        rules.numbers.update(dict.fromkeys(values, LEFT_OUT))
    elif isinstance(target, int):
        rules.numbers.update(dict.fromkeys(values, target))
    elif _NUMBERS.fullmatch(target):
        numbers = _range(target)
        if len(numbers) not in (1, len(values)):
            raise UserError(
                f"input.relabel: expected as many numbers as values, got {key} ({len(values):,}) and "
                f"{target} ({len(numbers):,})"
            )
        every = [*numbers] * (len(values) // len(numbers))
        rules.numbers.update(zip(values, every, strict=True))
    else:
        rules.names.update(dict.fromkeys(values, target))


def _range(text: str) -> range:
    """Return the numbers of a text that is one or a first and a last, as in ``7`` or ``1-150``."""
    found = _NUMBERS.fullmatch(text)
    assert found
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last or last >= VALUES:
        raise UserError(f"input.relabel: expected numbers from 0 to {VALUES - 1:,}, ascending, got {text}")
    return range(first, last + 1)


def _relabelled(rules: _Rules, given: Mapping[int, str]) -> tuple[dict[int, str], NDArray[np.int64]]:
    """Return the classes by number, and the number that each value (65536,) becomes; -1 is left out."""
    numbers = np.arange(VALUES)
    for value, number in rules.numbers.items():
        numbers[value] = number
    unnamed = set(np.delete(numbers, list(rules.names)).tolist())  # What comes of values that no rule names.
    reached = {number: rules.classes.get(name, name) for number, name in given.items() if number in unnamed}
    members: dict[str, list[int]] = defaultdict(list)
    for number, name in [*reached.items(), *rules.names.items()]:
        if name is not None:
            members[name].append(number)
    found = _numbered(given, members, unnamed - given.keys())
    become = np.arange(VALUES)
    for number, name in reached.items():
        become[number] = LEFT_OUT if name is None else found[name]
    numbers = np.where(numbers == LEFT_OUT, LEFT_OUT, become[numbers])
    for value, name in rules.names.items():
        numbers[value] = found[name]
    return {number: name for name, number in found.items()}, numbers


def _numbered(
    given: Mapping[int, str], members: Mapping[str, Sequence[int]], without_class: Collection[int]
) -> dict[str, int]:
    """Return the number of each class: the list's, else the least of its members that is free.

    Numbers ``without_class`` are those that values become which are of none, so that they stay so.
    """
    listed = {name: number for number, name in given.items()}
    found = {name: listed[name] for name in members if name in listed}
    taken = {*found.values(), *without_class}
    for name, numbers in members.items():
        if name not in found:
            free = (number for number in [*sorted(numbers), *range(VALUES)] if number not in taken)
            found[name] = next(free)
            taken.add(found[name])
    return found


def _ignored(chosen: Sequence[int | str], classes: Mapping[int, str]) -> Iterator[int]:
    """Yield the numbers of what ``input.ignore`` names."""
    by_name = {name: number for number, name in classes.items()}
    _require_known([one for one in chosen if isinstance(one, str)], by_name, "input.ignore")
    for one in chosen:
        yield by_name[one] if isinstance(one, str) else one


def _require_known(names: Collection[str], classes: Collection[str], where: str) -> None:
    for name in names:
        if name not in classes:
            known = list(classes)
            more = f" and {len(known) - _SHOWN:,} more" if len(known) > _SHOWN else ""
            raise UserError(
                f"{where}: expected a class of the masks, or a value, got {name!r}{meant(name, known)}\n"
                f"  the classes: {', '.join(known[:_SHOWN])}{more}"
            )
