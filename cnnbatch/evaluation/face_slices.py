"""By what error rates of faces are sliced: columns of the list, or of the output, or the faces' poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import ListedFaces
from cnnbatch.evaluation.face_lists import FaceList, FacePairList
from cnnbatch.evaluation.face_poses import COLUMN, farther, has_poses, poses
from cnnbatch.evaluation.slicing import require_few, texts
from cnnbatch.humanize import meant
from cnnbatch.output.reader import Reader


def slice_values(
    result: Reader, listed: FaceList, faces: ListedFaces, columns: Sequence[str]
) -> dict[str, list[str]]:
    """Return for each of the ``columns`` a value for each row of the list.

    A column of the list goes before one of the output, and that before ``pose``. The latter two have a value
    for each picture, whose ``faces`` are those of ``listed.files``: a pair then has that of both, or both of
    theirs in alphabetical order, and of poses the one that is farther from the front. Raises UserError for a
    column that is nowhere, or has too many values.
    """
    require_known(columns, [*listed.columns, *known_columns(result.schema)])
    found = {column: _values(result, listed, faces, column) for column in columns}
    for column, values in found.items():
        require_few(column, len({*values}))
    return found


def known_columns(schema: pa.Schema) -> list[str]:
    """Return by what faces may be sliced in an output of these columns."""
    return [*schema.names, *([COLUMN] if has_poses(schema) and COLUMN not in schema.names else [])]


def require_known(columns: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError for the first of the ``columns`` that is not known."""
    for column in columns:
        if column not in known:
            raise UserError(
                f"slices: expected columns of the list or of the output, got {column!r}"
                f"{meant(column, known)}\n  what to do: take of {', '.join(known)}"
            )


def _values(result: Reader, listed: FaceList, faces: ListedFaces, column: str) -> list[str]:
    if column in listed.columns:
        return [*listed.columns[column]]
    is_pose = column not in result.schema.names
    each = poses(result, faces) if is_pose else _of_pictures(result, column, faces.rows)
    if not isinstance(listed, FacePairList):
        return each
    by_file = dict(zip(listed.files, each, strict=True))
    of_two = farther if is_pose else _of_pair
    pairs = zip(listed.first, listed.second, strict=True)
    return [of_two(by_file[one], by_file[other]) for one, other in pairs]


def _of_pictures(result: Reader, column: str, rows: NDArray[np.int64]) -> list[str]:
    """Return a column's texts at some ``rows`` (N,) of an output, in their order."""
    wanted, places = np.unique(rows, return_inverse=True)
    found: list[str] = []
    start = 0
    for batch in result.batches([column]):
        inside: Any = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
        found += texts(batch.column(0).take(pa.array(inside)), column)
        start += batch.num_rows
    return [found[place] for place in places]


def _of_pair(one: str, other: str) -> str:
    return one if one == other else ", ".join(sorted((one, other)))
