"""Which metrics an output can be judged by, from the columns that its predictions and its truth have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bound
from typing import Any, Protocol

import pyarrow as pa

from cnnbatch.metrics import Evaluated, classification, coco, localization, voc
from cnnbatch.metrics.kinds import KINDS, Kind
from cnnbatch.truth import BOX
from cnnbatch.types import Map

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
class Columns:
    """What there is to judge: the columns of both, and whether the truth says which objects are difficult."""

    predictions: pa.Schema
    truth: pa.Schema
    difficult: bool


@dataclass(frozen=True, slots=True)
class Judge:
    """One metric as the evaluation calls it; its steps are those of `cnnbatch.metrics`.

    ``columns`` are those that it reads of predictions with some schema; ``images`` gives of a partial a row
    an image, where the metric has some, and ``notes`` what it left out.
    """

    name: str
    applies: Callable[[Columns], bool]
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
    """Return the fields that a column ``objects`` has for each object; none where it means something else."""
    kind: Any = schema.field("objects").type if "objects" in schema.names else pa.null()
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return set()
    fields = {one.name: one.type for one in kind.value_type}
    return set(fields) if "label" in fields and fields.get("box") == BOX else set()


_SCORED: dict[str, Callable[[pa.DataType], bool]] = {
    "score": pa.types.is_floating,
    "top": lambda kind: pa.types.is_list(kind) and pa.types.is_struct(kind.value_type),
}


def _is(schema: pa.Schema, name: str, kind: Callable[[pa.DataType], bool]) -> bool:
    """Say whether a column is there and of a kind: a task from elsewhere may mean something else by it."""
    return name in schema.names and kind(schema.field(name).type)


def _coco(kind: Kind, field: str) -> Judge:
    def applies(columns: Columns) -> bool:
        return field in _object_fields(columns.predictions) & _object_fields(columns.truth)

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
        scored = [name for name in ("score", "top") if _is(schema, name, _SCORED[name])]
        return ["label", *scored, "true_score" if "true_score" in schema.names else "probabilities"]

    def known(piece: Piece) -> Any:
        return classification.partial(piece.predictions, piece.truth, piece.classes)

    return Judge(
        name="classes",
        applies=lambda columns: (
            _is(columns.predictions, "label", pa.types.is_string) and "label" in columns.truth.names
        ),
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
        applies=lambda columns: (
            {"label", "box"} <= set(columns.predictions.names) and "objects" in columns.truth.names
        ),
        columns=lambda schema: ["label", "box"],
        partial=lambda piece: localization.partial(piece.predictions, piece.truth),
        merged=lambda: _Summed(localization.merge),
        result=lambda merged, apply: localization.result(merged.whole()),
        images=lambda partial: None,
        notes=lambda partial: partial.excluded,
    )


def _voc() -> Judge:
    return Judge(
        name="voc",
        applies=lambda columns: columns.difficult and "box" in _object_fields(columns.predictions),
        columns=lambda schema: ["objects"],
        partial=lambda piece: voc.partial(piece.predictions, piece.truth, piece.first_place),
        merged=voc.Merged,
        result=voc.result,
        images=lambda partial: None,
        notes=lambda partial: {},  # Those of the boxes.
    )


JUDGES = {
    judge.name: judge
    for judge in (
        _classification(),
        _localization(),
        _coco(KINDS["boxes"], "box"),
        _voc(),
        _coco(KINDS["masks"], "mask"),
        _coco(KINDS["keypoints"], "keypoints"),
    )
}
"""All judges by name, in the order in which their numbers are shown."""


def judges(columns: Columns) -> Iterator[Judge]:
    """Yield the judges of predictions and truth with these columns."""
    return (judge for judge in JUDGES.values() if judge.applies(columns))
