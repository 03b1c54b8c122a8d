"""Objects that are all of an image, things and stuff, judged as an evaluation calls `panoptic`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.metrics import Evaluated, Metric, Piece, Schemas, panoptic
from cnnbatch.metrics.iou_types import IOU_TYPES
from cnnbatch.metrics.objects import Labels, Objects, comparable, flatten, object_fields
from cnnbatch.metrics.panoptic import PanopticPartial
from cnnbatch.metrics.segments import Segments, encoded
from cnnbatch.types import Map

TRUTHS, DETECTIONS = "true objects", "detections"

_FIELDS = {"mask", "is_thing"}


class PanopticMetric(Metric):
    """Objects with masks that say whether they are things, judged by such objects."""

    answer = "objects"

    def applies(self, schemas: Schemas) -> bool:
        """Say whether both have masks, and things among them."""
        both = object_fields(schemas.predictions) & object_fields(schemas.truth)
        return both.issuperset(_FIELDS)

    def partial(self, piece: Piece) -> PanopticPartial:
        """Match the segments of a piece."""
        return self.partials(piece, [])[0]

    def partials(self, piece: Piece, groups: Sequence[NDArray[np.int64]]) -> list[PanopticPartial]:
        """Match the segments of a piece, each image once, and add up all of them and each group."""
        excluded = Counter[str]()
        keys: list[Any] = piece.predictions["key"].to_pylist()
        said = _segments(piece.predictions["objects"], excluded, DETECTIONS)
        true = _segments(piece.truth["objects"], excluded, TRUTHS)
        counts = panoptic.count(keys, said, true)
        whole = panoptic.partial(counts)
        return [
            replace(whole, left_out=whole.left_out + excluded),
            *(panoptic.partial(counts, rows) for rows in groups),
        ]

    def merge(self, partials: Sequence[PanopticPartial]) -> PanopticPartial:
        """Add up partials."""
        return panoptic.merge(partials)

    def result(self, merged: PanopticPartial, apply: Map) -> Evaluated:
        """Return the numbers of all images."""
        return panoptic.result(merged)

    def images(self, partial: PanopticPartial) -> pa.Table | None:
        """Return a row an image (`panoptic.SCHEMA`)."""
        return partial.rows

    def notes(self, partial: PanopticPartial) -> Mapping[str, int]:
        """Return how many images and objects were left out, by reason."""
        return partial.left_out


def _segments(column: Any, excluded: Counter[str], what: str) -> Iterator[Segments]:
    """Yield the segments of each image; objects without a mask are left out, and counted."""
    labels = Labels()
    objects = flatten(column, labels)
    usable = IOU_TYPES["masks"].usable(objects)
    if what == TRUTHS:
        usable = {**usable, "that say neither thing nor stuff": _known(objects, "is_thing")}
    objects = comparable(objects, usable, excluded, what)
    ends = np.searchsorted(objects.image, np.arange(len(column) + 1))
    for start, end in zip(ends, ends[1:], strict=False):
        some = objects.take(np.arange(start, end))
        masks = list(map(encoded, _field(some, "mask").to_pylist()))
        names = [labels.names[number] for number in some.label]
        yield Segments(names, masks, _field(some, "is_thing").to_pylist(), some.crowd.tolist())


def _field(objects: Objects, name: str) -> Any:
    return pc.struct_field(objects.struct, name)


def _known(objects: Objects, name: str) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = _field(objects, name).is_valid().to_numpy(zero_copy_only=False)
    return known
