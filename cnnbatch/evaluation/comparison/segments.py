"""Segments of panoptic pictures compared pixel by pixel, by their classes; counted on their run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.evaluation.comparison.measure import ImageScore, as_type
from cnnbatch.evaluation.comparison.options import CompareOptions
from cnnbatch.evaluation.comparison.pixels import NO_CLASS, Cells, PixelMeasure
from cnnbatch.metrics.segments import encoded, overlaps
from cnnbatch.truth import MASK

SEGMENT = frozenset({"label", "box", "mask", "is_thing"})
"""The fields of an object that is a segment."""

SEGMENTS = pa.list_(pa.struct([("label", pa.string()), ("mask", MASK)]))


class SegmentMeasure(PixelMeasure):
    """Segments that do not overlap, things and stuff; a pixel's class is that of its segment.

    Two of one class whose IoU is above 0.5 are the same segment (Kirillov et al. 2019).
    """

    columns = {"objects": SEGMENTS, "width": pa.int32(), "height": pa.int32()}
    leaves = ("objects.label", "objects.mask", "width", "height")
    image_scores = (ImageScore("PQ", "segments"),)

    def __init__(self, kind: str, options: CompareOptions) -> None:
        super().__init__(kind, options)
        self._segments = np.zeros(3, np.int64)  # of A, of B, and matched

    def decode(self, column: Any) -> Any:
        """Return objects as `SEGMENTS`; those without a mask, which have no pixels, are left out."""
        flat: Any = pc.list_flatten(column)
        fields = [as_type(pc.struct_field(flat, one.name), one.type) for one in SEGMENTS.value_type]
        kept = pc.and_(fields[1].is_valid(), fields[0].is_valid())
        parents = pc.list_parent_indices(column).filter(kept).to_numpy(zero_copy_only=False)
        ends = np.cumsum(np.bincount(parents.astype(np.int64), minlength=len(column)))
        objects = pa.StructArray.from_arrays(fields, fields=list(SEGMENTS.value_type)).filter(kept)
        offsets: Any = pa.array(np.concatenate([[0], ends]), pa.int32())
        return pa.ListArray.from_arrays(offsets, objects, mask=column.is_null())

    def cells(self, a: Any, b: Any) -> Cells | None:
        """Count the pixels of one image."""
        sizes = {tuple(one["mask"]["size"]) for row in (a, b) for one in row["objects"]}
        sizes |= {(row["height"], row["width"]) for row in (a, b)}
        if len(sizes) != 1:
            return None
        masks = [[encoded(one["mask"]) for one in row["objects"]] for row in (a, b)]
        found = overlaps(*masks)
        first, second = (self._numbers([one["label"] for one in row["objects"]]) for row in (a, b))
        alike = first[:, None] == second
        matched = alike & (2 * found.shared > found.first[:, None] + found.second - found.shared)
        self._segments += len(first), len(second), int(matched.sum())
        height, width = sizes.pop()
        none = int(self._numbers([NO_CLASS])[0])
        rest_a, rest_b = found.first - found.shared.sum(axis=1), found.second - found.shared.sum(axis=0)
        nothing = height * width - int(found.first.sum() + rest_b.sum())
        return Cells(
            np.concatenate([np.repeat(first, len(second)), first, np.full(len(second), none), [none]]),
            np.concatenate([np.tile(second, len(first)), np.full(len(first), none), second, [none]]),
            np.concatenate([found.shared.ravel(), rest_a, rest_b, [nothing]]),
        )

    def counts(self) -> dict[str, int]:
        """Return the numbers of images, pixels and segments."""
        a, b, matched = self._segments.tolist()
        return {**super().counts(), "segments_a": a, "segments_b": b, "matched": matched}

    def sentence(self) -> str:
        """Return what the agreement stands on, in words."""
        a, b, matched = (f"{count:,}" for count in self._segments.tolist())
        return f"{super().sentence()}; {matched} segments match of {a} in A and {b} in B"

    def _numbers(self, labels: list[str]) -> NDArray[np.int64]:
        return self.labels.numbers(pa.array(labels, pa.string()))
