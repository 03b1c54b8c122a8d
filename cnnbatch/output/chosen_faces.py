"""Which of the faces that were found in a picture count, where it is of one person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnnbatch.config.output import Which


def chosen_faces(row: Mapping[str, Any], which: Which) -> list[tuple[int, dict[str, Any]]]:
    """Return the faces of a row that count, each with its number; none of a row without faces.

    The row has ``objects`` and, for those nearest to the centre, ``width`` and ``height``.
    """
    faces = [*enumerate(row["objects"] or [])]
    if which == "all" or not faces:
        return faces
    return [max(faces, key=lambda face: _rank(face[1], which, row))]


def _rank(face: Mapping[str, Any], which: Which, row: Mapping[str, Any]) -> float:
    box = face["box"]
    if which == "score":
        return float(face["score"])
    if which == "largest":
        return float((box["x2"] - box["x1"]) * (box["y2"] - box["y1"]))
    x, y = (box["x1"] + box["x2"] - row["width"]) / 2, (box["y1"] + box["y2"] - row["height"]) / 2
    return -float(x * x + y * y)
