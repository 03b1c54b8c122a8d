"""What one annotation of a COCO file has to be: checked while it is listed, so that the workers need not.

A mask is drawn by pycocotools, in C: what would make it write or allocate without bounds is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from cnnbatch.images import redaction

_FARTHEST = 1e9  # pixels
_LONGEST = 10_000_000  # pixels of one outline; pycocotools keeps every fifth of one
_LARGEST = 2**31
_NUMBERS = {int, float}
_MASKS = "the segmentation as polygons [[x, y, ...], ...] or {counts, size}"
_COUNTS = re.compile(r"[0-o]*")


def is_id(value: Any) -> bool:
    """Say whether ``value`` can name an image or a class: whole, or text that UTF-8 can hold."""
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= mark <= "\udfff" for mark in value)
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53
    return type(value) is int and abs(value) < 2**63


def side(value: Any) -> int | None:
    """Return a side in pixels; None where it is not said, or as what no image has."""
    if type(value) not in _NUMBERS or not 1 <= value < _LARGEST:
        return None
    return int(value)


def problem(one: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an annotation; None where nothing is."""
    box, points, mask = one.get("bbox"), one.get("keypoints") or [], one.get("segmentation") or []
    area, flags = one.get("area"), (one.get("iscrowd"), one.get("ignore"))
    if not _numbers(box) or len(box) != 4:
        return _expected("the bbox [x, y, width, height] in pixels", box)
    if not _numbers(points) or len(points) % 3:
        return _expected("the keypoints [x, y, visibility, ...]", points)
    if area is not None and not _numbers([area]):
        return _expected("the area in pixels", area)
    if any(flag not in (None, 0, 1) for flag in flags):
        return _expected("iscrowd and ignore as 0 or 1", flags)
    return _problem_of_mask(mask)


def size_of_runs(one: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the (height, width) of a checked annotation's run lengths; None where its mask is none."""
    mask = one.get("segmentation")
    if not isinstance(mask, dict):
        return None, None
    height, width = mask["size"]
    return int(height), int(width)


def problem_of_segments(segments: Any) -> str | None:
    """Return what is wrong with the ``segments_info`` of a panoptic annotation; None where nothing is."""
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
        return _expected("segments_info [{id, category_id, ...}, ...]", segments)
    numbers = [one.get("id") for one in segments]
    if any(type(number) is not int or not 0 < number < 1 << 24 for number in numbers):
        return _expected("the id of each segment, a number from 1 to 16,777,215", numbers)
    if len(set(numbers)) != len(numbers):
        return "two of its segments have the same id"
    for one in segments:
        if found := problem({"bbox": [0, 0, 0, 0], **one, "keypoints": None, "segmentation": None}):
            return found
    return None


def _problem_of_mask(mask: Any) -> str | None:
    if isinstance(mask, list):
        return next(filter(None, map(_problem_of_polygon, mask)), None)
    counts, size = (mask.get("counts"), mask.get("size")) if isinstance(mask, dict) else (None, None)
    if not _numbers(size) or len(size) != 2 or None in map(side, size):
        return _expected(_MASKS, mask)
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not _whole(runs):
        return _expected("run lengths in the segmentation as numbers from 0 on or as COCO's text", counts)
    if sum(runs) != size[0] * size[1]:
        wanted = f"run lengths of {size[1]} x {size[0]} pixels in the segmentation"
        return f"expected {wanted}, {size[0] * size[1]:,} in all, got {sum(runs):,}"
    return None


def _problem_of_polygon(polygon: Any) -> str | None:
    if not _numbers(polygon):
        return _expected(_MASKS, polygon)
    if len(polygon) % 2:
        return _expected("a polygon of the segmentation as [x, y, x, y, ...]", polygon)
    if _outline(polygon) > _LONGEST:
        return f"a polygon of the segmentation is longer than {_LONGEST:,} pixels"
    return None


def _numbers(value: Any) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or not _NUMBERS.issuperset(map(type, value)):
        return False
    return not value or (max(value) < _FARTHEST and min(value) > -_FARTHEST)


def _whole(runs: Any) -> TypeGuard[list[int]]:
    return isinstance(runs, list) and {int}.issuperset(map(type, runs)) and min(runs, default=0) >= 0


def _outline(polygon: list[float]) -> float:
    """Return the length of a polygon's outline; 0 where it is plainly short enough."""
    if not polygon or len(polygon) * (max(polygon) - min(polygon)) <= _LONGEST:
        return 0
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    edges = zip(points, points[1:] + points[:1], strict=True)
    return sum(max(abs(x1 - x2), abs(y1 - y2)) for (x1, y1), (x2, y2) in edges)


def _runs(counts: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed text; None where it is no such text.

    A character has five bits, the lowest first; from the fourth run on they are differences.
    """
    if not _COUNTS.fullmatch(counts):
        return None
    runs: list[int] = []
    value = bits = 0
    for digit in (ord(mark) - 48 for mark in counts):
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (1 << bits) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
        elif bits > 60:
            return None
    return None if bits else runs


def _expected(what: str, got: Any) -> str:
    return f"expected {what}, got {redaction.value(got)}"
