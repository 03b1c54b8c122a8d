"""Which metrics an output can be judged by, from the columns that its predictions and its truth have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bound
from typing import Any, Protocol

import pyarrow as pa

from cnnbatch.metrics import Evaluated, classification, coco, localization
from cnnbatch.metrics.kinds import KINDS, Kind
from cnnbatch.parallel import Map

TOGETHER = 8


class Merged(Protocol):
    """Takes partials in, one after the other."""

    def add(self, partial: Any) -> None:
        """Take one more partial in."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some images to judge: ``predictions`` and ``truth`` row beside row, both with the model's names.

    ``first_place`` is the place of the first image among all, ``classes`` the model's where they are known.
    """

    predictions: pa.Table
    truth: pa.Table
    first_place: int
    classes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Judge:
    """One metric as the evaluation calls it; its steps are those of `cnnbatch.metrics`.

    ``applies`` and ``columns`` are asked for the schemas of predictions and truth, and of predictions;
    ``images`` gives of a partial a row an image, where the metric has some, and ``notes`` what it left out.
    """

    name: str
    applies: Callable[[pa.Schema, pa.Schema], bool]
    columns: Callable[[pa.Schema], Sequence[str]]
    partial: Callable[[Piece], Any]
    merged: Callable[[], Merged]
    result: Callable[[Any, Map], Evaluated]
    images: Callable[[Any], pa.Table | None]
    notes: Callable[[Any], Mapping[str, int]]


class _Summed:
    """Partials that add up; some are merged at a time, since each merge copies the sums."""

    def __init__(self, merge: Callable[[Sequence[Any]], Any]) -> None:
        self._merge = merge
        self._held: list[Any] = []

    def add(self, partial: Any) -> None:
        self._held.append(partial)
        if len(self._held) == TOGETHER:
            self._held = [self._merge(self._held)]

    def whole(self) -> Any:
        return self._merge(self._held)


def _object_fields(schema: pa.Schema) -> set[str]:
    """Return the fields that a column ``objects`` has for each object."""
    if "objects" not in schema.names:
        return set()
    of_one: Any = schema.field("objects").type.value_type
    return {of_one.field(place).name for place in range(of_one.num_fields)}


def _coco(kind: Kind, field: str) -> Judge:
    def applies(predictions: pa.Schema, truth: pa.Schema) -> bool:
        return field in _object_fields(predictions) & _object_fields(truth)

    def images(partial: coco.Partial) -> pa.Table:
        names = partial.images.schema.names
        return partial.images.rename_columns(
            [name if name == "key" else kind.prefix + name for name in names]
        )

    return Judge(
        name=kind.name,
        applies=applies,
        columns=lambda schema: ["objects"],
        partial=lambda piece: coco.partial(kind, piece.predictions, piece.truth, piece.first_place),
        merged=bound(coco.Merged, kind),
        result=coco.result,
        images=images,
        notes=lambda partial: partial.excluded,
    )


def _classification() -> Judge:
    def columns(schema: pa.Schema) -> list[str]:
        """Leave the probabilities where they are, unless nothing else tells the true class's."""
        return ["label", "score", "top", "true_score" if "true_score" in schema.names else "probabilities"]

    def known(piece: Piece) -> Any:
        return classification.partial(piece.predictions, piece.truth, piece.classes)

    return Judge(
        name="classes",
        applies=lambda predictions, truth: "label" in predictions.names and "label" in truth.names,
        columns=columns,
        partial=known,
        merged=lambda: _Summed(classification.merge),
        result=lambda merged, apply: classification.result(merged.whole()),
        images=lambda partial: partial.images,
        notes=lambda partial: {},
    )


def _localization() -> Judge:
    return Judge(
        name="localization",
        applies=lambda predictions, truth: (
            {"label", "box"} <= set(predictions.names) and "objects" in truth.names
        ),
        columns=lambda schema: ["label", "box"],
        partial=lambda piece: localization.partial(piece.predictions, piece.truth),
        merged=lambda: _Summed(localization.merge),
        result=lambda merged, apply: localization.result(merged.whole()),
        images=lambda partial: None,
        notes=lambda partial: partial.excluded,
    )


JUDGES = {
    judge.name: judge
    for judge in (
        _classification(),
        _localization(),
        _coco(KINDS["boxes"], "box"),
        _coco(KINDS["masks"], "mask"),
        _coco(KINDS["keypoints"], "keypoints"),
    )
}
"""All judges by name, in the order in which their numbers are shown."""


def judges(predictions: pa.Schema, truth: pa.Schema) -> Iterator[Judge]:
    """Yield the judges of predictions and truth with these columns."""
    return (judge for judge in JUDGES.values() if judge.applies(predictions, truth))
