"""How good predictions are: one pure file a metric, ``partial(...)``, ``merge(...)``, ``result(...)``.

A partial comes from any piece of the images, merging is associative, and any split gives what one
piece gives: counts exactly, sums of floats to their rounding. A `Metric` is these steps as an evaluation
calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.truth import answer_of
from cnnbatch.types import Map

TOGETHER = 8
"""Partials that are merged at a time, since each merge copies what is counted."""


@dataclass(frozen=True, slots=True)
class Value:
    """One number: its 95 % interval from ``low`` to ``high``, and the ``count`` that it stands on.

    ``value`` is None where there is no such number; ``reason`` then says why. ``low`` and ``high`` are
    None where no interval is known. ``replicates`` are the bootstrap's values, float64 (R,): those of two
    outputs over the same images are paired, since an image's weights follow from its key.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    reason: str | None = None
    replicates: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a metric gives: headline numbers, in the order to show them, and tables by name."""

    metrics: Mapping[str, Value]
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schemas:
    """The columns of predictions and of ground truth, which may know ``difficult`` objects."""

    predictions: pa.Schema
    truth: pa.Schema
    difficult: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Some images to judge: ``predictions`` and ``truth``, row by row, both with the model's names.

    ``predictions`` have ``key``, ``error``, ``width``, ``height`` and the metric's columns. ``first_place``
    is the place of the first image among all, ``classes`` the model's where they are known, of which the
    first ``maps`` are those of maps (0: all). ``asset`` reads what an address in ``predictions`` stands for.
    """

    predictions: pa.Table
    truth: pa.Table
    first_place: int = 0
    classes: tuple[str, ...] | None = None
    asset: Callable[[str], bytes] | None = None
    maps: int = 0

    @property
    def map_classes(self) -> tuple[str, ...] | None:
        """The model's classes whose places are the numbers of maps."""
        return self.classes[: self.maps] if self.classes and self.maps else self.classes

    def take(self, rows: NDArray[np.int64]) -> Piece:
        """Return some of the images."""
        return replace(self, predictions=self.predictions.take(rows), truth=self.truth.take(rows))


class Merging(Protocol):
    """Takes partials, one after the other."""

    def add(self, partial: Any, /) -> None:
        """Take one more partial."""

    def merged(self) -> Any:
        """Return what all partials come to."""


class Metric:
    """A metric as an evaluation calls it; a subclass has ``answer``, `partial`, `merge` and `result`.

    ``answer`` is the kind of answer that its ground truth is of. ``less_is_better`` is how the names of those
    numbers begin that fall as predictions get better.
    """

    answer: ClassVar[str]
    less_is_better: ClassVar[tuple[str, ...]] = ()

    def applies(self, schemas: Schemas) -> bool:
        """Say whether predictions with such columns can be judged by such ground truth."""
        return answer_of(schemas.truth) == self.answer in schemas.predictions.names

    def columns(self, predictions: pa.Schema) -> Sequence[str]:
        """Return which columns of predictions with this schema are read."""
        return [self.answer]

    def partial(self, piece: Piece) -> Any:
        """Return what some images contribute; it travels between processes."""
        raise NotImplementedError

    def partials(self, piece: Piece, groups: Sequence[NDArray[np.int64]]) -> list[Any]:
        """Return the partial of all images, then that of each group of them, whose rows it has.

        A metric that takes long for an image looks at each once; of a group only its numbers are asked.
        """
        return [self.partial(piece), *(self.partial(piece.take(rows)) for rows in groups)]

    def merge(self, partials: Sequence[Any]) -> Any:
        """Return several partials as one."""
        raise NotImplementedError

    def result(self, merged: Any, apply: Map) -> Evaluated:
        """Return the numbers of all images; ``apply`` may do parts of the work side by side."""
        raise NotImplementedError

    def merging(self) -> Merging:
        """Return what takes the partials as they come."""
        return _Merging(self.merge)

    def images(self, partial: Any) -> pa.Table | None:
        """Return a row an image for ``evaluation/images.parquet``; None where there is nothing to say."""
        return None

    def notes(self, partial: Any) -> Mapping[str, int]:
        """Return how much was left out, by reason."""
        return {}


class _Merging:
    """Merges some partials at a time."""

    def __init__(self, merge: Callable[[Sequence[Any]], Any]) -> None:
        self._merge = merge
        self._held: list[Any] = []

    def add(self, partial: Any) -> None:
        self._held.append(partial)
        if len(self._held) == TOGETHER:
            self._held = [self._merge(self._held)]

    def merged(self) -> Any:
        return self._merge(self._held)
