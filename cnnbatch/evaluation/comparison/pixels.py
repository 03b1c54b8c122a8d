"""Pixels compared by their classes: the share with the same class in both outputs, and the IoU of each.

Only sums are kept: the cells of one confusion matrix, and two numbers a replicate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.measure import ClassShift, LabelChange, Measure, flags
from cnnbatch.evaluation.comparison.options import CompareOptions
from cnnbatch.metrics import Value
from cnnbatch.metrics.intervals import REPLICATES, percentiles, poisson_weights

NO_CLASS = "no class"
OTHER_SIZE = "images have another size in B; their pixels are not compared"


class Cells(NamedTuple):
    """How many pixels of an image have each pair of classes: numbers in `Measure.labels`, (n,) each."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    pixels: NDArray[np.int64]

    @property
    def equal(self) -> int:
        """The pixels that have the same class in both."""
        return int(self.pixels[self.first == self.second].sum())


class PixelMeasure(Measure):
    """The share of pixels with the same class in both outputs; a subclass counts the `cells` of an image.

    The interval is the Poisson bootstrap's over images. All pixels of an image that failed in one output
    differ. What weighs most are the images with the largest share of pixels that differ; an image's own
    ``agreement`` is the share of those that do not.
    """

    unit = "Pixels"
    changes_lead = "Pixels by their classes."
    drawn = True
    at_once = 64

    def __init__(self, kind: str, options: CompareOptions) -> None:
        super().__init__(kind, options)
        self._cells = Counter[tuple[int, int]]()
        self._sums = np.zeros(
            (2, 1 + REPLICATES), np.int64
        )  # Equal pixels and all, as they are and replicates.

    @abstractmethod
    def cells(self, a: Any, b: Any) -> Cells | None:
        """Count the pixels of one image, whose rows are structs with ``columns``; None: of another size."""

    def add(self, a: pa.RecordBatch, b: pa.RecordBatch, failed: NDArray[np.bool_]) -> pa.Table:
        """Count images; see `Measure`."""
        lost = flags(a["code"].is_valid()) | flags(b["code"].is_valid())
        found = list(self._each(a, b, lost))
        equal, pixels = (np.array([one[place] for one in found], np.int64) for place in (0, 1))
        keys: list[Any] = a["key"].to_pylist()
        weights = np.insert(poisson_weights(keys).astype(np.int64), 0, 1, axis=1)
        self._sums += np.stack([equal, pixels]) @ weights
        differs = (equal != pixels) | lost | (pixels == 0)
        self.count_images(differs, failed)
        share = np.divide(equal, pixels, out=np.zeros(len(found)), where=pixels > 0)
        return pa.table(
            {
                "differs": pa.array(differs),
                "weight": pa.array(1 - share),
                "agreement": pa.array(share, mask=lost | (pixels == 0)),
            }
        )

    def _each(
        self, a: pa.RecordBatch, b: pa.RecordBatch, lost: NDArray[np.bool_]
    ) -> Iterator[tuple[int, int]]:
        """Yield the equal pixels and all pixels of each image; none where they can't be compared."""
        for row, gone in enumerate(lost.tolist()):
            one, other = ({name: batch[name][row].as_py() for name in self.columns} for batch in (a, b))
            if gone:
                known = one if one[self.kind] is not None else other
                yield 0, 0 if known[self.kind] is None else (known["width"] or 0) * (known["height"] or 0)
            elif (cells := self.cells(one, other)) is None:
                self.excluded[OTHER_SIZE] += 1
                yield 0, 0
            else:
                self._add(cells)
                yield cells.equal, int(cells.pixels.sum())

    def _add(self, cells: Cells) -> None:
        some = cells.pixels > 0
        for one, other, pixels in np.stack(cells, axis=1)[some].tolist():
            self._cells[one, other] += pixels

    def agreement(self) -> Value:
        """Return the share over all pixels."""
        equal, pixels = self._sums
        if not pixels[0]:
            return Value(None, reason="no image has pixels in both outputs that can be compared")
        shares = np.divide(equal, pixels, out=np.full(pixels.shape, np.nan), where=pixels > 0)
        low, high = percentiles(shares[1:])
        return Value(float(shares[0]), low, high, self.images)

    def counts(self) -> dict[str, int]:
        """Return the numbers of images, of those that are equal in all pixels, and of pixels."""
        equal, pixels = self._sums[:, 0].tolist()
        images = {"compared": self.images, "all_pixels_equal": self.alike}
        return {**images, "pixels": pixels, "equal_pixels": equal}

    def sentence(self) -> str:
        """Return what the agreement stands on, in words."""
        equal, pixels = self._sums[:, 0].tolist()
        known = [one.iou for one in self.shifts() if one.iou is not None]
        mean = (
            f"; the mean IoU of the classes in A and in B is {sum(known) / len(known):.4f}" if known else ""
        )
        return f"{equal:,} of {pixels:,} pixels have the same class in both{mean}"

    def shifts(self) -> list[ClassShift]:
        """Return the classes by how much their pixels differ, those of no class left out."""
        first, second, both = Counter[int](), Counter[int](), Counter[int]()
        for (one, other), pixels in self._cells.items():
            first[one] += pixels
            second[other] += pixels
            both[one] += pixels if one == other else 0
        found = []
        for number, label in enumerate(self.labels.names):
            union = first[number] + second[number] - both[number]
            if union and label != NO_CLASS:
                iou = both[number] / union
                found.append(ClassShift(label, first[number], second[number], None, None, iou))
        return sorted(found, key=lambda one: (-abs(one.count_b - one.count_a), -one.count_a, one.label))

    def label_changes(self) -> list[LabelChange]:
        """Return which class became which, that of most pixels first."""
        self.changes = Counter({pair: pixels for pair, pixels in self._cells.items() if pair[0] != pair[1]})
        return super().label_changes()
