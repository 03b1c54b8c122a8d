"""The objects of many images as flat arrays, and the pairs of them that are to be compared.

Everything that judges detections begins here; one row an object, in the order of the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.truth import BOX, sigmas_of

_CORNERS = tuple(field.name for field in BOX)
_NO_ID = 10**18  # Greater than any id of 18 digits.


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects of N images, flat: ``image`` is the row of the table, ``label`` a number in `Labels`.

    ``boxes_xywh`` is float64 (n, 4) in pixels, as COCO's sums take it; ``area`` is the truth's own where
    it states one, else the box's. ``struct`` has what is not needed of every object: masks, keypoints.
    ``sigmas`` say how far each keypoint may be off; none: COCO's do.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    difficult: NDArray[np.bool_]
    struct: pa.StructArray
    sigmas: tuple[float, ...] = ()

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.image)

    def take(self, rows: NDArray[Any]) -> Objects:
        """Return some of the objects, by number or by mask, in that order."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Objects(
            self.image[rows],
            self.label[rows],
            self.score[rows],
            self.boxes_xywh[rows],
            self.area[rows],
            self.crowd[rows],
            self.difficult[rows],
            self.struct.take(pa.array(rows, pa.int64())),
            self.sigmas,
        )


class Labels:
    """Numbers for the names of classes, given as they come."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def numbers(self, names: pa.Array[Any]) -> NDArray[np.int64]:
        """Return the number of each name, -1 where that is null."""
        coded: Any = pc.dictionary_encode(names)
        own = [self._number(name) for name in coded.dictionary.to_pylist()]
        indices = pc.fill_null(coded.indices, len(own)).to_numpy(zero_copy_only=False)
        numbers: NDArray[np.int64] = np.array([*own, -1], np.int64)[indices]
        return numbers

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]


def flatten(column: pa.ChunkedArray[Any], labels: Labels) -> Objects:
    """Return the objects of a column ``objects``, those of its null rows not among them."""
    lists: Any = column.combine_chunks()
    struct: Any = pc.list_flatten(lists)
    image: Any = pc.list_parent_indices(lists)
    corners = [_floats(pc.struct_field(struct, ["box", corner]), np.nan) for corner in _CORNERS]
    x1, y1, x2, y2 = corners
    with np.errstate(invalid="ignore"):  # Of a box that reaches to infinity; the metrics leave it out.
        boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
        of_boxes = boxes[:, 2] * boxes[:, 3]
    own = _floats(_field(struct, "area"), np.nan)
    return Objects(
        image=image.to_numpy(zero_copy_only=False).astype(np.int64),
        label=labels.numbers(pc.struct_field(struct, "label")),
        score=_floats(_field(struct, "score"), 0.0),
        boxes_xywh=boxes,
        area=np.where(np.isnan(own), of_boxes, own),
        crowd=_flags(_field(struct, "crowd")),
        difficult=_flags(_field(struct, "difficult")),
        struct=struct,
        sigmas=sigmas_of(struct.type),
    )


def flatten_things(column: pa.ChunkedArray[Any], labels: Labels) -> Objects:
    """Return `flatten` without what is of stuff, such as sky, which nobody counts one by one."""
    objects = flatten(column, labels)
    names = [field.name for field in objects.struct.type]
    if "is_thing" not in names:
        return objects
    things: Any = pc.fill_null(pc.struct_field(objects.struct, "is_thing"), True)
    return objects.take(things.to_numpy(zero_copy_only=False))


def object_fields(schema: pa.Schema, column: str = "objects") -> set[str]:
    """Return the fields that a column has for each object; none where it means something else."""
    kind: Any = schema.field(column).type if column in schema.names else pa.null()
    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return set()
    fields = {one.name: one.type for one in kind.value_type}
    return set(fields) if "label" in fields and fields.get("box") == BOX else set()


def comparable(
    objects: Objects, usable: Mapping[str, NDArray[np.bool_]], excluded: Counter[str], what: str
) -> Objects:
    """Return the objects that can be compared; count the others in ``excluded``, each by its first reason.

    ``usable`` says by the reason why not which of them can be, (n,); ``what`` begins each reason.
    """
    kept = np.ones(len(objects), np.bool_)
    for reason, fine in usable.items():
        if lacking := int((kept & ~fine).sum()):
            excluded[f"{what} {reason}"] += lacking
        kept &= fine
    return objects if kept.all() else objects.take(kept)


def best_first(found: Objects) -> tuple[Objects, NDArray[np.int64]]:
    """Return the detections by image and class, best first, and the place of each there, (n,)."""
    found = found.take(np.lexsort((-found.score, group_numbers(found))))
    return found, ranks(group_numbers(found))


def by_group(truths: Objects) -> Objects:
    """Return the truths by image and class, in their order there."""
    return truths.take(np.argsort(group_numbers(truths), kind="stable"))


def image_order(image_ids: Any, first_place: int) -> NDArray[np.int64]:
    """Return what orders equal scores, (N,): an image's numeric id, as in COCO, else its place after those.

    An id alone decides, so that any split gives the same. ``first_place`` is the place of the first image.
    """
    numeric: Any = pc.fill_null(pc.match_substring_regex(image_ids, r"^-?\d{1,18}$"), False)
    numbers: Any = pc.if_else(numeric, image_ids, "0").cast(pa.int64())
    places = np.arange(first_place, first_place + len(image_ids), dtype=np.int64)
    return np.where(numeric.to_numpy(), numbers.to_numpy(), _NO_ID + places)


@dataclass(frozen=True, slots=True)
class ObjectPairs:
    """Which objects of two are compared: ``first`` and ``second`` are their numbers, (p,)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]


def pairs(first: Objects, second: Objects, any_label: bool = False) -> ObjectPairs:
    """Return all pairs in one image and of one class, sorted by ``first``, then by ``second``.

    ``second`` must be sorted by image and, unless ``any_label``, by class within it.
    """
    groups = group_numbers(first, any_label), group_numbers(second, any_label)
    low = np.searchsorted(groups[1], groups[0], "left")
    counts = np.searchsorted(groups[1], groups[0], "right") - low
    numbers = np.repeat(np.arange(len(first)), counts)
    within = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ObjectPairs(numbers, np.repeat(low, counts) + within)


def group_numbers(objects: Objects, any_label: bool = False) -> NDArray[np.int64]:
    """Return a number that two objects share where they are of one image and one class."""
    return objects.image if any_label else (objects.image << 32) + objects.label


def iou_xywh(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of boxes side by side, (p, 4) each, float64 (p,)."""
    return _overlap(first, second, np.zeros(len(first), np.bool_))


def crowd_iou_xywh(
    first: NDArray[np.float64], second: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return `iou_xywh`; where ``crowd``, the intersection over the first's own area, as COCO has it."""
    return _overlap(first, second, crowd)


def _overlap(
    first: NDArray[np.float64], second: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    ends = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    sides = ends - np.maximum(first[:, :2], second[:, :2])
    shared = sides[:, 0] * sides[:, 1]
    own = first[:, 2] * first[:, 3]
    union = np.where(crowd, own, own + second[:, 2] * second[:, 3] - shared)
    touching = (sides > 0).all(axis=1)
    iou: NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros(len(first)), where=touching & (union > 0)
    )
    return iou


def ranks(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each element among those of its group; equal groups lie together."""
    starts = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
    sizes = np.diff(starts, append=len(groups))
    return np.arange(len(groups)) - np.repeat(starts, sizes)


def _field(struct: Any, name: str) -> Any:
    names: Sequence[str] = [struct.type.field(place).name for place in range(struct.type.num_fields)]
    return pc.struct_field(struct, name) if name in names else pa.nulls(len(struct), pa.float64())


def _floats(column: Any, missing: float) -> NDArray[np.float64]:
    filled = pc.fill_null(column.cast(pa.float64()), missing)
    values: NDArray[np.float64] = filled.to_numpy(zero_copy_only=False)
    return values


def _flags(column: Any) -> NDArray[np.bool_]:
    values: NDArray[np.bool_] = pc.fill_null(column.cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
    return values
