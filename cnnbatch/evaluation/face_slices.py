"""By what error rates of faces are sliced: columns of the list that they are judged by, or of the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_lists import FaceList, FacePairList
from cnnbatch.evaluation.slicing import require_few, texts
from cnnbatch.humanize import meant
from cnnbatch.output.reader import Reader


def slice_values(
    result: Reader, listed: FaceList, rows: NDArray[np.int64], columns: Sequence[str]
) -> dict[str, list[str]]:
    """Return for each of the ``columns`` a value for each row of the list.

    A column of the list goes before one of the output. The latter has a value for each picture, whose
    ``rows`` (N,) in the output are those of ``listed.files``: a pair then has that of both, or both of
    theirs in alphabetical order. Raises UserError for a column that is in neither, or has too many values.
    """
    found = {column: _values(result, listed, rows, column) for column in columns}
    for column, values in found.items():
        require_few(column, len({*values}))
    return found


def _values(result: Reader, listed: FaceList, rows: NDArray[np.int64], column: str) -> list[str]:
    if column in listed.columns:
        return [*listed.columns[column]]
    if column not in result.schema.names:
        known = [*listed.columns, *result.schema.names]
        raise UserError(
            f"slices: expected columns of the list or of the output, got {column!r}{meant(column, known)}\n"
            f"  what to do: take of {', '.join(known)}"
        )
    each = _of_pictures(result, column, rows)
    if not isinstance(listed, FacePairList):
        return each
    by_file = dict(zip(listed.files, each, strict=True))
    pairs = zip(listed.first, listed.second, strict=True)
    return [_of_pair(by_file[one], by_file[other]) for one, other in pairs]


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
