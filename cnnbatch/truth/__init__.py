"""Ground truth as data: the table that every source gives, in the columns and types of the predictions.

One type for objects, whatever a source knows of them: what it does not know is null, which costs
nothing in Parquet, and readers need not ask.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BOX = pa.struct([(side, pa.float64()) for side in ("x1", "y1", "x2", "y2")])
"""Pixels of the upright original; x2 - x1 is the width. 64 bits: COCO's sums must not round."""

MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
"""COCO's compressed run lengths; ``size`` is (height, width)."""

KEYPOINT = pa.struct([("x", pa.float64()), ("y", pa.float64()), ("visibility", pa.float32())])
"""In ground truth ``visibility`` is COCO's: 0 not labelled, 1 hidden, 2 visible."""

FACE = "face"
"""The label of an object that is a face."""

_SIGMAS = b"sigmas"


def keypoints_field(sigmas: Sequence[float] = ()) -> pa.Field[Any]:
    """Return the field of an object's keypoints; ``sigmas`` say how far each may be off, where not COCO's do.

    They are kept in the field's metadata, as a JSON list.
    """
    kept = {_SIGMAS: json.dumps([*sigmas]).encode()} if sigmas else None
    return pa.field("keypoints", pa.list_(KEYPOINT), metadata=kept)


def sigmas_of(objects: pa.DataType) -> tuple[float, ...]:
    """Return the sigmas in the type of an object; none where it says none."""
    fields: Any = objects
    kept = fields.field("keypoints").metadata if fields.get_field_index("keypoints") >= 0 else None
    return tuple(json.loads((kept or {}).get(_SIGMAS, b"[]")))


_OBJECT: list[pa.Field[Any]] = [
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("box", BOX),
    pa.field("mask", MASK),
    pa.field("keypoints", pa.list_(KEYPOINT)),
    pa.field("crowd", pa.bool_()),
    pa.field("area", pa.float64()),
    pa.field("difficult", pa.bool_()),
    pa.field("ignore", pa.bool_()),
    pa.field("is_thing", pa.bool_()),
]
OBJECTS = pa.list_(pa.struct(_OBJECT))
"""``is_thing`` is false of stuff, such as sky, where a ground truth is panoptic; null elsewhere."""

_LABEL: list[pa.Field[Any]] = [pa.field("image_id", pa.string()), pa.field("label", pa.string())]
_SIZED: list[pa.Field[Any]] = [
    pa.field("image_id", pa.string()),
    pa.field("objects", OBJECTS),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("problem", pa.string()),
]
LABEL_SCHEMA = pa.schema(_LABEL)
"""One class an image."""

OBJECTS_SCHEMA = pa.schema(_SIZED)
"""Objects an image, null where it has no ground truth, which also states ``width`` and ``height``."""

MAP = pa.large_binary()
"""A number for every pixel, as a PNG file of one value a pixel; see `images.class_map`."""

MAP_RUNS = pa.list_(pa.struct([("class", pa.int32()), ("mask", MASK)]))
"""The same as a mask for each class."""

MAP_CLASSES = pa.list_(pa.struct([("label", pa.string()), ("pixels", pa.int64()), ("share", pa.float64())]))
"""How much of an image each class has, the largest first; ``share`` is of all pixels."""

_MAPPED: list[pa.Field[Any]] = [
    pa.field("image_id", pa.string()),
    pa.field("map", MAP),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("problem", pa.string()),
]
MAP_SCHEMA = pa.schema(_MAPPED)
"""A class for every pixel: numbers of a map are ids of its `classes_of`, or among its `ignored_of`."""

_FIELDS = frozenset(one.name for one in _OBJECT)
_ABOUT = frozenset({"image_id", "width", "height", "problem"})
"""Columns of a ground truth that are about the image, not about what is true of it."""

SURE = 0.5
"""The score from which on a predicted object counts as found, where a person does not say another."""

NO_TRUTH = "none"
"""What ``input.truth`` says where the ground truth that lies in the input is to be left out."""

OBJECT_LABEL = "object_label"
"""The column that repeats what an earlier job called an object: a prediction, and so no ground truth."""

_CLASSES = b"classes"
_IGNORED = b"ignored"


@dataclass(frozen=True, slots=True)
class Class:
    """A class with the number or name that its source knows it by."""

    name: str
    id: int | str


def with_classes(schema: pa.Schema, classes: Sequence[Class]) -> pa.Schema:
    """Return ``schema`` with its ordered classes in its metadata, beside what that has of other things."""
    named = {_CLASSES: json.dumps([[one.name, one.id] for one in classes]).encode()}
    return schema.with_metadata({**(schema.metadata or {}), **named})


def with_ignored(schema: pa.Schema, numbers: Collection[int]) -> pa.Schema:
    """Return the schema of maps with the numbers in its metadata whose pixels do not count."""
    return schema.with_metadata({**(schema.metadata or {}), _IGNORED: json.dumps(sorted(numbers)).encode()})


def ignored_of(schema: pa.Schema) -> frozenset[int]:
    """Return the numbers of maps whose pixels do not count."""
    return frozenset(json.loads((schema.metadata or {}).get(_IGNORED, b"[]")))


def classes_of(schema: pa.Schema) -> tuple[Class, ...]:
    """Return the ordered classes in a ground truth's metadata; none where they are not known."""
    kept = (schema.metadata or {}).get(_CLASSES, b"[]")
    return tuple(Class(name, number) for name, number in json.loads(kept))


def answer_of(truth: pa.Schema) -> str:
    """Return the kind of answer that a ground truth is of, which is the name of its column: ``label``, say.

    Raises ValueError where it has no such column, or several.
    """
    found = [name for name in truth.names if name not in _ABOUT]
    if len(found) != 1:
        raise ValueError(
            f"expected one column with what is true of an image, got {', '.join(found) or 'none'}"
        )
    return found[0]


def with_new_fields(truth: pa.Table) -> pa.Table:
    """Return a ground truth of an earlier version with the fields that objects have had since, all null."""
    place = truth.schema.get_field_index("objects")
    if place < 0 or truth.schema.field(place).type == OBJECTS:
        return truth
    earlier: Any = truth.schema.field(place).type
    if not pa.types.is_list(earlier) or not {one.name for one in earlier.value_type} <= _FIELDS:
        return truth
    return truth.cast(truth.schema.set(place, pa.field("objects", OBJECTS)))


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows of a ground truth's columns as a table; what a row lacks is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema)


def object_labels(truth: pa.Table) -> list[str]:
    """Return the labels of all objects of a ground truth, each once."""
    objects: Any = pc.list_flatten(truth["objects"])
    labels = pc.struct_field(objects, "label").unique().to_pylist()
    return [label for label in labels if label is not None]


def renamed(
    objects: pa.ListArray[Any], names: Mapping[str, str | None]
) -> tuple[pa.ListArray[Any], Counter[str]]:
    """Return the objects with other names for their labels, and how many were left out, by label.

    ``objects`` is a column of type `OBJECTS`; a label that ``names`` lead to None is left out, one that they
    lack stays.
    """
    flat: Any = pc.list_flatten(objects)
    coded: Any = pc.struct_field(flat, "label").dictionary_encode()
    old = coded.dictionary.to_pylist()
    new: Any = pa.array([names.get(label, label) for label in old], pa.string())
    gone: Any = pa.array([label is not None and names.get(label, label) is None for label in old], pa.bool_())
    left_out: Any = pc.fill_null(gone.take(coded.indices), False)
    labels = new.take(coded.indices)
    fields = list(flat.type)
    columns = [labels if one.name == "label" else pc.struct_field(flat, one.name) for one in fields]
    kept = pc.invert(left_out)
    structs: Any = pa.StructArray.from_arrays(columns, fields=fields).filter(kept)
    parents = pc.list_parent_indices(objects).filter(kept).to_numpy(zero_copy_only=False)
    counts = np.bincount(parents.astype(np.int64), minlength=len(objects))
    ends: Any = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    lists: Any = pa.ListArray.from_arrays(ends, structs, mask=objects.is_null())
    return lists, Counter(pc.struct_field(flat, "label").filter(left_out).to_pylist())
