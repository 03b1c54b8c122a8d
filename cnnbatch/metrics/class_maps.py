"""Maps of classes judged by maps of classes, as an evaluation calls `semantic`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, semantic
from cnnbatch.metrics.numbering import Numbering, numbering
from cnnbatch.metrics.semantic import SemanticPartial
from cnnbatch.truth import MAP, MAP_RUNS
from cnnbatch.types import Map

ENCODINGS = (MAP, MAP_RUNS, pa.string())
"""The types of the column ``map``: PNG files, masks of the classes, addresses of PNG files."""


class MapMetric(Metric):
    """Maps of classes judged by maps of classes."""

    answer = "map"

    def applies(self, schemas: Schemas) -> bool:
        """Say whether both are maps; a task from elsewhere may mean something else by that column."""
        if not super().applies(schemas):
            return False
        return schemas.predictions.field("map").type in ENCODINGS and schemas.truth.field("map").type == MAP

    def partial(self, piece: Piece) -> SemanticPartial:
        """Count the maps of a piece."""
        return self.partials(piece, [])[0]

    def partials(self, piece: Piece, groups: Sequence[NDArray[np.int64]]) -> list[SemanticPartial]:
        """Count the maps of a piece, each once, and add up all of them and each group."""
        keys: list[Any] = piece.predictions["key"].to_pylist()
        counts = semantic.count(keys, _predicted(piece), self.true(piece), self.numbering(piece))
        return [semantic.partial(counts), *(semantic.partial(counts, rows) for rows in groups)]

    def numbering(self, piece: Piece) -> Numbering:
        """Return which class each number of the true and of the predicted maps stands for."""
        return numbering(piece.truth.schema, piece.map_classes)

    def true(self, piece: Piece) -> Iterator[class_map.Numbers]:
        """Yield the true maps."""
        for key, value in zip(piece.predictions["key"], piece.truth["map"], strict=True):
            yield _decoded(piece, key.as_py(), value.as_py(), (0, 0))

    def merge(self, partials: Sequence[SemanticPartial]) -> SemanticPartial:
        """Add up partials."""
        return semantic.merge(partials)

    def result(self, merged: SemanticPartial, apply: Map) -> Evaluated:
        """Return the numbers of all images."""
        return semantic.result(merged)

    def images(self, partial: SemanticPartial) -> pa.Table | None:
        """Return a row an image (`semantic.SCHEMA`)."""
        return partial.rows

    def notes(self, partial: SemanticPartial) -> Mapping[str, int]:
        """Return how many images and pixels were left out, by reason."""
        return partial.left_out


def _predicted(piece: Piece) -> Iterator[class_map.Numbers | None]:
    """Yield the predicted maps, None for an image that failed."""
    columns = (piece.predictions[name] for name in ("key", "map", "error", "width", "height"))
    for key, value, error, width, height in zip(*columns, strict=True):
        if not value.is_valid or error.is_valid:
            yield None
        else:
            yield _decoded(piece, key.as_py(), value.as_py(), (height.as_py(), width.as_py()))


def _decoded(piece: Piece, key: str, value: Any, size: tuple[int, int]) -> class_map.Numbers:
    """Return a map from any of its encodings; ``size`` is (height, width)."""
    try:
        if isinstance(value, list):
            return class_map.from_runs(value, size)
        if isinstance(value, str) and piece.asset is not None:
            value = piece.asset(value)
        return class_map.from_png(value)
    except class_map.NotAMap as error:
        raise UserError(
            f"the map of {key} can't be read: {error}\n  what to do: make the output anew"
        ) from None
