"""Reads arrays of numbers from MATLAB's level-5 files, which is all that a set's labels take.

The format is that of MathWorks' "MAT-File Format"; anything but plain numbers is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = 128  # bytes; the last two tell the byte order
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # of arrays: double to uint64; those below are cells, structs, text
_COMPLEX = 0x08  # a flag
_MOST_BYTES = 64 << 20


def read_numbers(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name, each flat, in MATLAB's order (columns first).

    Raises:
        ValueError: it is no such file, or holds something else.
    """
    data = path.read_bytes()
    if len(data) < _HEADER or data[126:128] != b"IM":
        raise ValueError(f"{path.name} is no level-5 MATLAB file of this byte order")
    return dict(_matrix(body, path.name) for body in _matrices(data[_HEADER:], path.name))


def _matrices(data: bytes, name: str) -> Iterator[bytes]:
    for kind, body in _elements(data, name, padded=False):
        whole = (
            [(kind, body)] if kind != _COMPRESSED else _elements(_inflated(body, name), name, padded=False)
        )
        for inner, array in whole:
            if inner != _MATRIX:
                raise ValueError(f"{name} has an element of type {inner}; expected arrays")
            yield array


def _inflated(data: bytes, name: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"{name} is damaged: {error}") from None
    if stream.unconsumed_tail:
        raise ValueError(f"{name} has an array of more than {_MOST_BYTES:,} bytes")
    return found


def _matrix(data: bytes, name: str) -> tuple[str, NDArray[Any]]:
    parts = list(_elements(data, name))
    if len(parts) < 4 or len(parts[0][1]) < 8:
        raise ValueError(f"{name} has an array without numbers")
    flags, (_, _), (_, title), (kind, numbers) = parts[:4]
    array_class, bits = flags[1][0], flags[1][1]
    if array_class not in _NUMERIC_CLASSES or bits & _COMPLEX or kind not in _NUMBERS:
        raise ValueError(f"{name}: {title[:80]!r} is no array of plain numbers")
    dtype = np.dtype(f"<{_NUMBERS[kind]}")
    if len(numbers) % dtype.itemsize:
        raise ValueError(f"{name} is cut in an array")
    return title.decode("ascii", "replace"), np.frombuffer(numbers, dtype)


def _elements(data: bytes, name: str, padded: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield (type, bytes) of each element; a small one has its bytes inside its tag of eight."""
    place = 0
    while place + 8 <= len(data):
        kind, size = (int.from_bytes(data[place + at : place + at + 4], "little") for at in (0, 4))
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start, end = place + 8, place + 8 + size
            end += -end % 8 if padded else 0
        if start + size > len(data):
            raise ValueError(f"{name} is cut")
        yield kind, data[start : start + size]
        place = end
