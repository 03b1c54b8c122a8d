"""The values of a column, by each of which the numbers of an evaluation are given, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cnnbatch.errors import UserError

MOST_VALUES = 100
"""Values that a column of slices may have: each of them is judged as a whole collection is."""

NULL = "null"
"""What stands for no value, which is a slice, too."""


def texts(values: pa.Array[Any] | pa.ChunkedArray[Any], column: str) -> list[str]:
    """Return the values of a column as texts; raises UserError where they are lists, structs or bytes."""
    kind: Any = values.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise UserError(
            f"slices: expected a column of texts, numbers or dates, but {column!r} is of type {kind}\n"
            "  what to do: take another column"
        )
    plain: Any = values.cast(pa.string())
    found: list[Any] = pc.fill_null(plain, NULL).to_pylist()
    return found


def by_value(values: Sequence[str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield each of the ``values``, in alphabetical order, with the places that have it."""
    array = np.array(values, dtype=object)
    for value in sorted({*values}):
        yield value, np.flatnonzero(array == value)


def require_few(column: str, count: int) -> None:
    """Raise UserError where a column has more than `MOST_VALUES` values."""
    if count > MOST_VALUES:
        raise UserError(
            f"slices: expected a column of at most {MOST_VALUES} values, but {column!r} has more\n"
            "  what to do: take a column of few values, such as a camera or a country"
        )
