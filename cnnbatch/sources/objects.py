"""Objects as tables and JSON files give them: with our own fields, or with COCO's ``bbox`` and ``category``.

They are checked while the input is listed and travel with their ref as JSON, as those of a COCO file do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cnnbatch import truth
from cnnbatch.images import redaction
from cnnbatch.types import ImageRef

TRUTH = "truth"
"""The column of a ref that holds its objects, as JSON."""

FORMS = "a list of {label, box {x1, y1, x2, y2}} or of {category, bbox [x, y, width, height]}"
"""What is read as objects, for messages; a struct of lists instead of a list of structs is the same."""

_PLAIN = ("mask", "keypoints", "crowd", "area", "difficult", "ignore", "is_thing")


def holds_objects(fields: Iterable[str]) -> bool:
    """Say whether something of these fields is meant as an object."""
    return not {"box", "bbox"}.isdisjoint(fields)


def has_class(fields: Iterable[str]) -> bool:
    """Say whether an object of these fields has a class."""
    return not {"label", "category"}.isdisjoint(fields)


def class_name(value: Any, names: Sequence[str] | None) -> str | None:
    """Return a class as text: a number by its name, where there are names; -1, NaN and "" are no class.

    Raises ValueError for a number that has no name, and for what is no class at all.
    """
    if value is None or value == "" or value != value or (value == -1 and names):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a class as text or number, got {redaction.value(value)}")
    if names is None or isinstance(value, str):
        return str(value)
    if value not in range(len(names)):
        raise ValueError(f"expected a class from 0 to {len(names) - 1}, got {value}")
    return names[int(value)]


def as_json(
    objects: Any, size: tuple[int | None, int | None], names: Sequence[str] | None = None
) -> str | None:
    """Return the objects of one image as JSON, with the ``(width, height)`` that the truth states.

    None stays None: no truth. Raises ValueError that says what is wrong.
    """
    if objects is None:
        return None
    rows = [_row(one, names) for one in _one_by_one(objects)]
    try:
        pa.array([rows], truth.OBJECTS)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"an object has a field of another type: {error}") from None
    return json.dumps({"width": size[0], "height": size[1], "objects": rows}, separators=(",", ":"))


def truth_table(refs: Sequence[ImageRef], schema: pa.Schema) -> pa.Table:
    """Return the truth that `as_json` wrote into the refs."""
    texts = [(ref.key, ref.columns[TRUTH]) for ref in refs]
    return truth.table([{"image_id": key, **json.loads(text or "{}")} for key, text in texts], schema)


def of_coco(one: Mapping[str, Any], bbox: Sequence[float]) -> dict[str, Any]:
    """Return the fields of an object that a COCO annotation with the box (x, y, width, height) tells."""
    x, y, width, height = bbox
    return {
        "box": {"x1": x, "y1": y, "x2": x + width, "y2": y + height},
        "crowd": bool(one.get("iscrowd")),
        "area": width * height if one.get("area") is None else one["area"],
        "ignore": bool(one.get("ignore")),
    }


def _one_by_one(objects: Any) -> list[Mapping[str, Any]]:
    """Return a list of objects, also of a struct of lists."""
    if isinstance(objects, Mapping):
        columns = {name: cells for name, cells in objects.items() if isinstance(cells, list)}
        lengths = {name: len(cells) for name, cells in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected lists of one length, got {lengths}")
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not isinstance(objects, list) or not all(isinstance(one, Mapping) for one in objects):
        raise ValueError(f"expected {FORMS}, got {str(objects)[:100]}")
    return objects


def _row(one: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    label = class_name(one.get("label", one.get("category")), names)
    if label is None:
        raise ValueError(f"expected a label or category in every object, got {str(dict(one))[:200]}")
    if one.get("bbox") is not None:
        return {"label": label, **of_coco(one, _numbers(one["bbox"], "bbox [x, y, width, height]"))}
    box = one.get("box")
    sides = [box.get(side) for side in ("x1", "y1", "x2", "y2")] if isinstance(box, Mapping) else box
    x1, y1, x2, y2 = _numbers(sides, "box {x1, y1, x2, y2}")
    plain = {name: one[name] for name in _PLAIN if one.get(name) is not None}
    return {"label": label, "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}, **plain}


def _numbers(value: Any, form: str) -> list[float]:
    good = isinstance(value, list) and len(value) == 4
    if not good or not all(isinstance(one, int | float) and math.isfinite(one) for one in value):
        raise ValueError(f"expected the {form} in pixels, got {str(value)[:100]}")
    return [float(one) for one in value]
