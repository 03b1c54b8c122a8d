"""How images are cut into parts and folds: by the hash of each key, or by their order in a sequence.

By hash an image stays where it is when others come; by order it may not.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable
from math import floor
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cnnbatch.errors import UserError
from cnnbatch.sources.key_patterns import KeyPattern, key_pattern
from cnnbatch.types import ImageRef

if TYPE_CHECKING:
    from cnnbatch.config.input import Subset

_ROUNDING = 1e-9  # Of shares: 100 * 0.29 is a little less than 29.


class Place(NamedTuple):
    """Where an image came to lie: its part, and the fold that it validates in, 0 where there are none."""

    part: str
    fold: int


class Cut(Protocol):
    """Cuts images, each asked for once and in the order of their listing."""

    def place(self, ref: ImageRef) -> Place:
        """Return where the next image lies."""


class Groups:
    """What images have in common that belong together, as those of one film or one patient."""

    def __init__(self, rule: Subset) -> None:
        self._pattern: KeyPattern | None = None
        if rule.group is not None:
            self._pattern = key_pattern(rule.group, "input.subset.group")

    def of(self, key: str) -> str | None:
        """Return what the pattern finds in a key; None without one. Raises UserError if it finds none."""
        found = None if self._pattern is None else self._pattern.group(key)
        if self._pattern is not None and found is None:
            raise UserError(
                f"input.subset.group: {self._pattern.pattern!r} does not match the key {key!r}\n"
                "  what to do: give one that matches every key from its start; its group is what images of "
                "one part have in common"
            )
        return found


class HashCut:
    """By the hashes of keys, or of groups; parts of one picture are in the same fold."""

    def __init__(self, rule: Subset) -> None:
        self._rule, self._groups = rule, Groups(rule)

    def place(self, ref: ImageRef) -> Place:
        """Return where an image lies, in whatever order it is asked for."""
        rule, group = self._rule, self._groups.of(ref.key)
        part = part_by_hash(group or ref.key, rule.validation, rule.test, rule.seed)
        return Place(part, fold_of(ref, rule.folds or 1, rule.seed, group))


class OrderCut:
    """By the places of pictures in their sequences; parts of one picture are in the same part and fold.

    ``counts`` has the number of pictures of each sequence, where it has to be known.
    """

    def __init__(self, rule: Subset, counts: Counter[str]) -> None:
        self._rule, self._counts, self._groups = rule, counts, Groups(rule)
        self._seen = Counter[str]()
        self._last: tuple[str, Place] | None = None

    def place(self, ref: ImageRef) -> Place:
        """Return where the next image lies."""
        picture = picture_of(ref)
        if self._last is None or self._last[0] != picture:
            sequence = sequence_of(picture, self._groups)
            self._last = picture, self._place(self._seen[sequence], self._counts[sequence])
            self._seen[sequence] += 1
        return self._last[1]

    def _place(self, place: int, count: int) -> Place:
        rule, folds = self._rule, self._rule.folds or 1
        if rule.cut == "turn":
            rest = place - turns_before(place, rule.test)
            return Place(part_by_turn(place, rule.validation, rule.test), rest % folds)
        rest = count - round(count * rule.test)
        return Place(part_by_block(place, count, rule.validation, rule.test), place * folds // max(1, rest))


class ClassCut:
    """By the places of classes in the order of their names' hashes: each part has its share of them."""

    def __init__(self, rule: Subset, classes: Iterable[str]) -> None:
        self._rule = rule
        order = sorted(classes, key=lambda name: (fraction(name, f"class {rule.seed}"), name))
        self._places = {name: self._place(place, len(order)) for place, name in enumerate(order)}

    def of(self, name: str) -> Place:
        """Return where the images of a class lie."""
        return self._places[name]

    def _place(self, place: int, count: int) -> Place:
        rule, rest = self._rule, count - round(count * self._rule.test)
        part = part_by_block(place, count, rule.validation, rule.test)
        return Place(part, place * (rule.folds or 1) // max(1, rest))


def cut_by(rule: Subset, training: Callable[[], Iterable[ImageRef]]) -> Cut:
    """Return what cuts the images of a listing anew; ``training`` lists those that are to be cut."""
    if rule.cut == "hash":
        return HashCut(rule)
    return OrderCut(rule, count_sequences(training(), rule) if rule.cut == "block" else Counter())


def count_sequences(refs: Iterable[ImageRef], rule: Subset) -> Counter[str]:
    """Return how many pictures each sequence has."""
    counts, groups, last = Counter[str](), Groups(rule), None
    for ref in refs:
        if (picture := picture_of(ref)) != last:
            counts[sequence_of(picture, groups)] += 1
            last = picture
    return counts


def sequence_of(key: str, groups: Groups) -> str:
    """Return the sequence of a picture: its group, else its folder."""
    group = groups.of(key)
    return posixpath.dirname(key) if group is None else group


def picture_of(ref: ImageRef) -> str:
    """Return the key of an image, or of the picture that it is a part of."""
    picture = ref.columns.get("image") if "box" in ref.columns else None
    return str(picture or ref.key)


def part_by_hash(key: str, validation: float, test: float, seed: int = 0) -> str:
    """Return the part of a key: the first shares of the hashes test and validate, the rest trains."""
    place = fraction(key, f"part {seed}")
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def fold_of(ref: ImageRef, folds: int, seed: int = 0, group: str | None = None) -> int:
    """Return the fold that an image validates in: that of its ``group`` or picture, where it is in one."""
    return int(fraction(group or picture_of(ref), f"fold {seed}") * folds)


def part_by_block(place: int, count: int, validation: float, test: float) -> str:
    """Return the part of the image at a ``place`` of ``count``: the last test, those before them validate."""
    tests, validates = round(count * test), round(count * validation)
    if place >= count - tests:
        return "test"
    return "validation" if place >= count - tests - validates else "train"


def part_by_turn(place: int, validation: float, test: float) -> str:
    """Return the part of the image at a ``place``: every fifth tests for a share of 0.2, and so on."""
    if _is_turn(place, test):
        return "test"
    rest = place - turns_before(place, test)
    return "validation" if test < 1 and _is_turn(rest, validation / (1 - test)) else "train"


def turns_before(place: int, share: float) -> int:
    """Return how many images before a ``place`` come by turns to a share."""
    return floor(place * share + _ROUNDING)


def _is_turn(place: int, share: float) -> bool:
    return turns_before(place + 1, share) > turns_before(place, share)


def fraction(key: str, purpose: str) -> float:
    """Return a number in [0, 1) that follows from a key, another one for every ``purpose``."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=purpose.encode()[:64]).digest()
    return int.from_bytes(digest) / 2**64
