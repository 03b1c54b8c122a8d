"""Which class each number of a map stands for, in the ground truth and in predictions, by their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.images.class_map import Numbers
from cnnbatch.truth import Class, classes_of, ignored_of

_NUMBERS = 1 << 16  # of a map of 16 bits


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """The judged classes by name, and the class of each number by its place among them, from 0 to C - 1.

    ``truth`` and ``predicted`` (65536,) lead from numbers to places. For the truth C stands for ignored,
    C + 1 and so on for the classes ``unknown`` to the model, and the last of all ``codes`` for a number that
    is no class; for predictions C stands for all that is no judged class.
    """

    names: tuple[str, ...]
    unknown: tuple[str, ...]
    truth: Numbers
    predicted: Numbers

    @property
    def codes(self) -> int:
        """How many places the truth's numbers have."""
        return len(self.names) + 1 + len(self.unknown) + 1


def numbering(truth: pa.Schema, model: Sequence[str] | None) -> Numbering:
    """Return the numbering of true maps with this schema, and of predictions by the ``model``'s classes.

    A prediction's number is the place of its class in ``model``. Those are judged that both know, in the
    model's order. Where the model's classes are not known, its numbers are those of the truth.
    """
    return of_classes(classes_of(truth), model, ignored_of(truth))


def of_classes(truth: Sequence[Class], model: Sequence[str] | None, ignored: Collection[int]) -> Numbering:
    """Return the same from the truth's classes, whose ids are its numbers, and those that it ignores."""
    own = {int(one.id): one.name for one in truth if int(one.id) not in ignored}
    theirs = own if model is None else dict(enumerate(model))
    known, true = set(theirs.values()), set(own.values())
    names = tuple(dict.fromkeys(name for name in theirs.values() if name in true))
    unknown = tuple(dict.fromkeys(name for name in own.values() if name not in known))
    places = {name: place for place, name in enumerate(names)}
    others = {name: len(names) + 1 + place for place, name in enumerate(unknown)}
    none = len(names) + 1 + len(unknown)
    kind = np.dtype(np.uint8 if none < 1 << 8 else np.uint16)
    of_truth: NDArray[Any] = np.full(_NUMBERS, none, kind)
    predicted: NDArray[Any] = np.full(_NUMBERS, len(names), kind)
    of_truth[sorted(ignored)] = len(names)
    for number, name in own.items():
        of_truth[number] = {**places, **others}[name]
    for number, name in theirs.items():
        predicted[number] = places.get(name, len(names))
    return Numbering(names, unknown, of_truth, predicted)
