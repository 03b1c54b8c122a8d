"""What a forgotten image or object is in a plan, in a part and in a ground truth: functions of tables alone.

The row of an image stays in its place, with a hash for its key, an error that says so, and nothing else. An
object goes from its row, so those behind it move up by one place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.metrics.objects import iou_xywh
from cnnbatch.output.forgotten import Forgotten
from cnnbatch.truth import BOX
from cnnbatch.types import FORGOTTEN, Failure, ImageRef, Shard

FAILURE = Failure("forget", FORGOTTEN, "it was forgotten, and is never read again")
"""What the row of a forgotten image says in the place of its answers."""

SAME_OBJECT = 0.5
"""The intersection over union from which on an object is the one that was forgotten."""

_ERROR = {"stage": FAILURE.stage, "code": FAILURE.code, "message": FAILURE.message}
_OBJECTS = "objects"


@dataclass(frozen=True)
class Forgetting:
    """What is suppressed in an output whose objects were found by ``model``, the hash of its weights.

    ``model`` is None before the output has one: then only what is forgotten as a whole is known.
    """

    forgotten: Forgotten = Forgotten()
    model: str | None = None

    def ref(self, ref: ImageRef) -> ImageRef:
        """Return an image as it is planned: itself, or what stands for it where it is forgotten."""
        if self.forgotten and not ref.is_forgotten and self.is_whole(ref.key):
            return forgotten_ref(self.forgotten.hmac(ref.key))
        return ref

    def shard(self, shard: Shard) -> Shard:
        """Return a shard with what stands for its forgotten images; these are not marked as vanished."""
        if not self.forgotten:
            return shard
        refs = tuple(map(self.ref, shard.refs))
        return Shard(
            shard.index, refs, frozenset(one for one in shard.vanished if not refs[one].is_forgotten)
        )

    def is_whole(self, key: str) -> bool:
        """Say whether the image ``key`` is forgotten as a whole."""
        return self.forgotten.is_whole(key, self.model)

    def concerns(self, rows: pa.Table) -> bool:
        """Say whether anything of a part's ``rows`` is forgotten that they have still."""
        keys: list[Any] = rows["key"].filter(pa.array(~are_forgotten(rows["error"]))).to_pylist()
        return any(self.is_whole(key) or len(self._boxes(key)) for key in keys)

    def part(self, rows: pa.Table) -> pa.Table | None:
        """Return the rows of a part without what is forgotten; None where that is nothing.

        An image is forgotten as a whole also where it has no object at the box of a forgotten one.
        """
        keys: list[Any] = rows["key"].to_pylist()
        known = {*np.flatnonzero(~are_forgotten(rows["error"])).tolist()}
        places = [place for place in known if self.is_whole(keys[place])]
        table, unfound = self._without_objects(rows, keys)
        if table is None and not places:
            return None
        return blanked_rows(
            rows if table is None else table,
            {one: self.forgotten.hmac(keys[one]) for one in {*places, *unfound}},
        )

    def rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return predicted rows without the forgotten objects.

        An image that has no object where a forgotten one was is forgotten as a whole: there it may have been
        found otherwise.
        """
        keys: list[Any] = rows["key"].to_pylist() if self.forgotten else []
        table, unfound = self._without_objects(pa.Table.from_batches([rows]), keys)
        if table is None:
            return rows
        table = blanked_rows(table, {place: self.forgotten.hmac(keys[place]) for place in unfound})
        return table.combine_chunks().to_batches()[0]

    def truth(self, truth: pa.Table, keys: Sequence[str]) -> pa.Table:
        """Return the ground truth of images without the objects that were forgotten."""
        table, _ = self._without_objects(truth, keys)
        return truth if table is None else table

    def _without_objects(self, rows: pa.Table, keys: Sequence[str]) -> tuple[pa.Table | None, list[int]]:
        """Return what `without_objects` does; None where no object of these images was forgotten."""
        boxes = {place: self._boxes(key) for place, key in enumerate(keys)} if self.forgotten else {}
        boxes = {place: found for place, found in boxes.items() if len(found)}
        return without_objects(rows, boxes) if boxes else (None, [])

    def _boxes(self, key: str) -> NDArray[np.float64]:
        return self.forgotten.boxes(key, self.model or "")


def forgotten_ref(hmac: str) -> ImageRef:
    """Return what stands for a forgotten image in a plan; ``hmac`` is that of its key."""
    return ImageRef(hmac, "")


def shard_without(shard: Shard, places: Mapping[int, str]) -> Shard:
    """Return a shard whose images at ``places`` are forgotten; the values are the HMACs of their keys."""
    refs = [forgotten_ref(places[place]) if place in places else ref for place, ref in enumerate(shard.refs)]
    return replace(shard, refs=tuple(refs), vanished=shard.vanished - places.keys())


def are_forgotten(errors: Any) -> NDArray[np.bool_]:
    """Say of each value of a column ``error`` whether its image was forgotten, (N,)."""
    codes: Any = pc.struct_field(errors, "code")
    found: Any = pc.equal(codes, pa.scalar(str(FORGOTTEN)))
    return np.asarray(pc.fill_null(found, False), np.bool_)


def forgotten_places(rows: pa.Table) -> dict[int, str]:
    """Return the places of the forgotten images among rows of a part, with the HMACs of their keys."""
    forgotten = are_forgotten(rows["error"])
    keys: list[Any] = rows["key"].filter(pa.array(forgotten)).to_pylist()
    return dict(zip(np.flatnonzero(forgotten).tolist(), keys, strict=True))


def blanked_rows(part: pa.Table, places: Mapping[int, str]) -> pa.Table:
    """Return the rows of a part, those at ``places`` forgotten, by the HMACs of their keys."""
    count = len(places)
    said: dict[str, list[Any]] = {
        "key": [*places.values()],
        "error": [_ERROR] * count,
        "vanished": [False] * count,
    }
    return _blanked(with_nullable_uri(part), [*places], said)


def blanked_truth(truth: pa.Table, places: Collection[int]) -> pa.Table:
    """Return a ground truth with nothing said of the images at ``places``, which are forgotten."""
    return _blanked(truth, [*places], {})


def blanked_page(page: pa.Table, places: Mapping[int, str]) -> pa.Table:
    """Return a page of a plan, the images of the rows at ``places`` forgotten, by the HMACs of their keys."""
    shards = page["shard"].take(pa.array([*places], pa.int64())).to_pylist()
    return _blanked(with_nullable_uri(page), [*places], {"key": [*places.values()], "shard": shards})


def without_objects(rows: pa.Table, boxes: Mapping[int, NDArray[np.float64]]) -> tuple[pa.Table, list[int]]:
    """Return rows without those objects that lie at forgotten boxes, and the rows where a box has none.

    ``boxes`` are by the row's number (K, 4) as xyxy; of several objects that overlap one by `SAME_OBJECT` or
    more, the best goes. A row without a list of objects has no answer, and nothing to lose.
    """
    if _OBJECTS not in rows.schema.names:
        return rows, [*boxes]
    column: Any = rows[_OBJECTS].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    ends, flat = np.concatenate([[0], np.cumsum(counts)]), column.flatten()
    corners, valid = _corners(flat), np.asarray(column.is_valid())
    kept, unfound = np.ones(len(flat), np.bool_), []
    for row, wanted in boxes.items():
        if valid[row]:
            found = matches(corners[ends[row] : ends[row + 1]], wanted)
            kept[ends[row] + found[found >= 0]] = False
            unfound += [row] if (found < 0).any() else []
    return _filtered(rows, column, np.concatenate([[0], np.cumsum(kept)])[ends], flat.filter(kept)), unfound


def matches(objects_xyxy: NDArray[np.float64], wanted_xyxy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which object (N, 4) lies at each wanted box (K, 4), int64 (K,), -1 where none does.

    The pairs that overlap most are taken first, each box and each object once.
    """
    found = np.full(len(wanted_xyxy), -1)
    boxes, objects = (axis.ravel() for axis in np.indices((len(wanted_xyxy), len(objects_xyxy))))
    overlaps = iou_xywh(_xywh(wanted_xyxy)[boxes], _xywh(objects_xyxy)[objects])
    taken = np.zeros(len(objects_xyxy), np.bool_)
    for pair in np.argsort(-overlaps, kind="stable"):
        if overlaps[pair] < SAME_OBJECT:
            break
        if found[boxes[pair]] < 0 and not taken[objects[pair]]:
            found[boxes[pair]], taken[objects[pair]] = objects[pair], True
    return found


def _xywh(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def _corners(flat: Any) -> NDArray[np.float64]:
    """Return the boxes of objects, float64 (N, 4) as xyxy; one without a box lies nowhere."""
    sides = [pc.struct_field(flat, ["box", side.name]).cast(pa.float64()) for side in BOX]
    columns = [pc.fill_null(side, 0.0).to_numpy(zero_copy_only=False) for side in sides]
    return np.stack(columns, axis=1)


def _filtered(rows: pa.Table, column: Any, ends: NDArray[np.int64], objects: Any) -> pa.Table:
    """Return rows with the lists of ``objects`` that end at ``ends`` in their column."""
    place = rows.schema.get_field_index(_OBJECTS)
    field = rows.schema.field(place)
    lists = pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), objects, type=field.type, mask=column.is_null()
    )
    return rows.set_column(place, field, lists)


def _blanked(rows: pa.Table, places: Sequence[int], said: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return rows that have at ``places`` what is ``said``, by the names of columns, and else nulls."""
    if not places:
        return rows
    kept = np.arange(rows.num_rows)
    kept[places] = -1
    others: Any = pa.array(kept, mask=kept < 0)
    kept[places] = rows.num_rows + np.arange(len(places))
    columns = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if field.name in said:
            fresh = pa.array(said[field.name], field.type)
            column = pa.chunked_array([*column.chunks, fresh], field.type)
        columns.append(column.take(kept if field.name in said else others))
    return pa.table(columns, schema=rows.schema)


def with_nullable_uri(rows: pa.Table) -> pa.Table:
    """Return rows whose addresses may be null, which those of earlier versions may not."""
    place = rows.schema.get_field_index("uri")
    return rows.cast(rows.schema.set(place, rows.schema.field(place).with_nullable(True)))
