"""The poses of the faces that are judged, by which error rates may be sliced where no column has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import ListedFaces
from cnnbatch.images.face_quality import pose_name
from cnnbatch.output.reader import Reader

COLUMN = "pose"
NO_FACE = "without a face"

_FARTHER = ("frontal", "half profile", "profile", "unknown", NO_FACE)
"""Poses, each farther from the front than those before."""


def has_poses(schema: pa.Schema) -> bool:
    """Say whether rows of these columns have faces with their yaw."""
    if "objects" not in schema.names:
        return False
    objects: Any = schema.field("objects").type
    one = objects.value_type
    return pa.types.is_struct(one) and one.get_field_index("quality") >= 0


def poses(result: Reader, faces: ListedFaces) -> list[str]:
    """Return the pose of each listed picture, by the yaw of its face that counts.

    Raises UserError where several faces of a picture count.
    """
    if (faces.counts > 1).any():
        raise UserError(
            f"slices: {COLUMN} is that of the one face of a picture that counts, but all of them do\n"
            "  what to do: give face=centre, largest or score"
        )
    numbers = np.full(len(faces.rows), -1)
    numbers[faces.counts == 1] = faces.numbers
    found = [NO_FACE] * len(numbers)
    start = 0
    for batch in result.batches(["objects"]):
        inside = (faces.rows >= start) & (faces.rows < start + batch.num_rows) & (numbers >= 0)
        places = np.flatnonzero(inside)
        yaws = _yaws(batch.column(0), faces.rows[places] - start, numbers[places])
        for place, yaw in zip(places, yaws, strict=True):
            found[place] = pose_name(yaw)
        start += batch.num_rows
    return found


def _yaws(objects: Any, rows: Any, numbers: Any) -> list[float | None]:
    """Return the yaw of one face of each of some rows of the column ``objects``."""
    starts = np.cumsum([0, *pc.fill_null(pc.list_value_length(objects), 0).to_pylist()])
    yaws: Any = pc.struct_field(objects.flatten(), ["quality", "yaw"])
    found: list[float | None] = yaws.take(pa.array(starts[rows] + numbers)).to_pylist()
    return found


def farther(one: str, other: str) -> str:
    """Return of two faces' poses that of the one which is turned farther from the front."""
    return max(one, other, key=_FARTHER.index)
