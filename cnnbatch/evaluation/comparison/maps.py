"""Maps of classes compared pixel by pixel, whatever their encodings and the order of their classes."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.measure import ImageScore
from cnnbatch.evaluation.comparison.pixels import NO_CLASS, Cells, PixelMeasure
from cnnbatch.metrics.class_maps import ENCODINGS
from cnnbatch.report.answers.entry import AboutOutput
from cnnbatch.report.answers.map import MapReport, ShownMap
from cnnbatch.truth import MAP, MAP_RUNS

STORED = pa.struct([("png", MAP), ("runs", MAP_RUNS), ("address", pa.string())])
"""A map of any encoding: one of the fields has it."""


class MapMeasure(PixelMeasure):
    """Maps of classes: classes are the same where their names are."""

    columns = {"map": STORED, "width": pa.int32(), "height": pa.int32()}
    image_scores = (ImageScore("mIoU", "truth_crc32"),)

    @classmethod
    def fits(cls, column: pa.DataType) -> bool:
        """Say whether the column has maps."""
        return column in ENCODINGS

    def decode(self, column: Any) -> Any:
        """Return maps as `STORED`."""
        kinds = list(STORED)
        fields = [column if one.type == column.type else pa.nulls(len(column), one.type) for one in kinds]
        return pa.StructArray.from_arrays(fields, fields=kinds, mask=column.is_null())

    def cells(self, a: Any, b: Any) -> Cells | None:
        """Count the pixels of one image."""
        maps = [_opened(row, about) for row, about in zip((a, b), self.about, strict=True)]
        first, second = (one.numbers() for one in maps)
        if first.shape != second.shape:
            return None
        sizes = [len(one.names) for one in maps]
        one, other = (np.minimum(numbers, size) for numbers, size in zip((first, second), sizes, strict=True))
        pairs = np.multiply(one, sizes[1] + 1, dtype=np.int64) + other
        counts = np.bincount(pairs.ravel(), minlength=(sizes[0] + 1) * (sizes[1] + 1))
        found = np.flatnonzero(counts)
        places = np.divmod(found, sizes[1] + 1)
        first_numbers, second_numbers = self._numbers
        return Cells(first_numbers[places[0]], second_numbers[places[1]], counts[found])

    @cached_property
    def _numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of both outputs' classes, then that of no class."""
        a, b = (self.labels.numbers(pa.array([*about.classes, NO_CLASS])) for about in self.about)
        return a, b


def _opened(row: Any, about: AboutOutput) -> ShownMap:
    stored = next(value for value in row["map"].values() if value is not None)
    return MapReport().opened(stored, row, about)
