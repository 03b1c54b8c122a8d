"""Thrift's compact protocol, as far as the footer and the page headers of a Parquet file need it.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

_MOST_DEPTH = 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_NUMBERS = frozenset((_I16, _I32, _I64))


class Damaged(OSError):
    """The bytes are not what they should be."""


class OverLimit(Exception):
    """More than a limit; its text says what and how much."""


Fields = dict[int, Any]
"""Of a struct by their numbers: whole numbers, structs and lists; None for any other value."""


def struct(data: bytes, left: list[int], at: int = 0, depth: int = 0) -> tuple[Fields, int]:
    """Return the fields of a struct that begins at ``at``, and where it ends.

    ``left[0]`` is how many structs it may have in it, and is counted down. Raises IndexError where ``data``
    ends before it, `Damaged`, and `OverLimit` where nothing is left.
    """
    fields: Fields = {}
    left[0] -= 1
    if left[0] < 0:
        raise OverLimit("more parts than are read")
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _signed(data, at)
        if kind in _NUMBERS:
            fields[number], at = _signed(data, at)
        elif kind in (_TRUE, _FALSE):  # a field's truth is its type
            fields[number] = None
        else:
            fields[number], at = _value(data, left, at, kind, depth + 1)
    return fields, at + 1


def _value(data: bytes, left: list[int], at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _MOST_DEPTH:
        raise Damaged("it is nested too deeply")
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return None, at + length
    if kind == _STRUCT:
        return struct(data, left, at, depth)
    if kind in (_LIST, _SET):
        return _list(data, left, at, depth)
    if kind in _NUMBERS:
        return _signed(data, at)
    if kind in (_TRUE, _FALSE, _BYTE):
        return None, at + 1
    if kind == _DOUBLE:
        return None, at + 8
    raise Damaged(f"a value of a type {kind} that no such file has")


def _list(data: bytes, left: list[int], at: int, depth: int) -> tuple[list[Any], int]:
    kind, count, at = data[at] & 15, data[at] >> 4, at + 1
    if count == 15:
        count, at = _unsigned(data, at)
    found = []
    for _ in range(count):
        if at >= len(data):  # every element has a byte at least
            raise IndexError
        value, at = _value(data, left, at, kind, depth + 1)
        found.append(value)
    return found, at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while (byte := data[at]) & 128:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise Damaged("a number of more than 64 bits")
    return value | byte << shift, at + 1


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return value >> 1 ^ -(value & 1), at
