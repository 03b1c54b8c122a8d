"""Truth as data: the table that every source gives, in the columns and types of the predictions.

One type for objects, whatever a source knows of them: what it does not know is null, which costs
nothing in Parquet, and readers need not ask.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

BOX = pa.struct([(side, pa.float64()) for side in ("x1", "y1", "x2", "y2")])
"""Pixels of the upright original; x2 - x1 is the width. 64 bits: COCO's sums must not round."""

MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
"""COCO's compressed run lengths; ``size`` is (height, width)."""

KEYPOINT = pa.struct([("x", pa.float64()), ("y", pa.float64()), ("visibility", pa.float32())])
"""In truth ``visibility`` is COCO's: 0 not labelled, 1 hidden, 2 visible."""

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
]
OBJECTS = pa.list_(pa.struct(_OBJECT))

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
"""Objects an image, null where the image has no truth; ``width`` and ``height`` as the truth states them."""

_CLASSES = b"classes"


@dataclass(frozen=True, slots=True)
class Class:
    """A class with the number or name that its source knows it by."""

    name: str
    id: int | str


def with_classes(schema: pa.Schema, classes: Sequence[Class]) -> pa.Schema:
    """Return ``schema`` with its ordered classes in its metadata."""
    return schema.with_metadata({_CLASSES: json.dumps([[one.name, one.id] for one in classes])})


def classes_of(schema: pa.Schema) -> tuple[Class, ...]:
    """Return the ordered classes in the metadata of a truth's schema; none where they are not known."""
    kept = (schema.metadata or {}).get(_CLASSES, b"[]")
    return tuple(Class(name, number) for name, number in json.loads(kept))


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows of a truth's columns as a table; what a row lacks is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema)


def check_sizes(truth: pa.Table, sizes: Sequence[tuple[int, int] | None]) -> pa.Table:
    """Leave out the objects of images whose truth was made for another size, and say so in ``problem``.

    ``sizes`` are the (width, height) found, None where an image could not be read.
    """
    if "problem" not in truth.schema.names:
        return truth
    stated = zip(truth["width"].to_pylist(), truth["height"].to_pylist(), strict=True)
    problems = [
        f"made for {width} x {height} pixels, the image has {found[0]} x {found[1]}; its objects are left out"
        if found and width and height and (width, height) != found
        else None
        for (width, height), found in zip(stated, sizes, strict=True)
    ]
    if not any(problems):
        return truth
    rows = [
        {**row, "objects": None, "problem": problem} if problem else row
        for row, problem in zip(truth.to_pylist(), problems, strict=True)
    ]
    return table(rows, truth.schema)
