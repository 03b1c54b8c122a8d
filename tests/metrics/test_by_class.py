"""Rows by class: those of one class, in their order, from memory and from disk, and nothing besides."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest

from cnnbatch.metrics.by_class import ByClass

FIELDS: list[pa.Field[Any]] = [pa.field("label", pa.string()), pa.field("number", pa.int64())]
SCHEMA = pa.schema(FIELDS)


def rows(first: int, count: int) -> pa.Table:
    """Return rows of one hundred classes in turn."""
    numbers = range(first, first + count)
    return pa.table({"label": [f"class {number % 100:02}" for number in numbers], "number": numbers}, SCHEMA)


@pytest.mark.parametrize("rows_in_memory", [10_000, 1500, 1])
def test_a_class_has_its_rows_in_order_and_is_sent_without_the_others(rows_in_memory: int) -> None:
    by_class = ByClass(SCHEMA, rows_in_memory)
    for first in range(0, 4000, 1000):
        by_class.add(rows(first, 1000))
    assert by_class.labels() == [f"class {number:02}" for number in range(100)]
    for number, label in enumerate(by_class.labels()):
        found = by_class.read(label)
        assert found["number"].to_pylist() == list(range(number, 4000, 100))
        assert len(pickle.dumps(found)) < 2 * found.nbytes + 1000
