"""Segments, the manifest and what it says in few bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import UserError
from cnnbatch.index import segments
from cnnbatch.index.manifest import (
    NAME,
    Manifest,
    OutputEntry,
    SegmentEntry,
    commit,
    described,
    read_manifest,
    runs,
)
from cnnbatch.storage import Storage
from tests.embedded import space


def rows(count: int) -> pa.Table:
    names = [f"k{number}" for number in range(count)]
    numbers = np.arange(count, dtype=np.int32)
    columns: dict[str, Any] = {
        "id": names,
        "key": names,
        "output": numbers * 0,
        "part": numbers // 4,
        "row": numbers % 4,
    }
    return pa.table({**columns, "box": pa.nulls(count, segments.ROW.field("box").type)}, segments.ROW)


def test_vectors_and_codes_come_back_and_lie_once_and_plainly(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 6)).astype(np.float16)
    codes = rng.integers(0, 256, (50, 2), np.uint8)
    table = segments.with_vectors(rows(50), vectors, codes)
    assert table.schema == segments.schema_of(pa.schema([]), 6, 2)
    data = segments.written(segments.saying(table, {"left_out": {"zero": 1}}))
    found = segments.read(data)
    assert (segments.vectors_of(found) == vectors).all()
    assert np.array_equal(segments.codes_of(found), codes)  # type: ignore[arg-type]
    assert segments.about(found) == {"left_out": {"zero": 1}}
    assert data.count(vectors.tobytes()) == 1
    assert all(data.count(one.tobytes()) == 1 for one in vectors), "statistics hold a vector a second time"
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0)
    kinds = {column.column(n).path_in_schema: column.column(n).compression for n in range(column.num_columns)}
    assert (kinds["vector"], kinds["code"], kinds["key"]) == ("UNCOMPRESSED", "UNCOMPRESSED", "ZSTD")


def test_a_slice_of_a_segment_has_its_own_vectors() -> None:
    vectors = np.arange(20, dtype=np.float16).reshape(10, 2)
    table = segments.with_vectors(rows(10), vectors, None)
    assert (segments.vectors_of(table.slice(3, 4)) == vectors[3:7]).all()
    assert segments.vectors_of(table.slice(0, 0)).shape == (0, 2)
    assert segments.codes_of(table) is None


def test_the_same_segment_has_the_same_bytes_in_another_process() -> None:
    code = (
        "import numpy as np; from tests.index.test_segments import rows; from cnnbatch.index import segments;"
        "t = segments.with_vectors(rows(9), np.ones((9, 4), np.float16), None);"
        "print(segments.checksum(segments.written(segments.saying(t, {'b': 1, 'a': 2}))))"
    )
    table = segments.with_vectors(rows(9), np.ones((9, 4), np.float16), None)
    here = segments.checksum(segments.written(segments.saying(table, {"a": 2, "b": 1})))
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@given(st.sets(st.integers(0, 60)))
def test_numbers_come_back_from_runs(numbers: set[int]) -> None:
    found = runs(numbers)
    assert [one for first, count in found for one in range(first, first + count)] == sorted(numbers)
    assert all(a + n < b for (a, n), (b, _) in zip(found, found[1:], strict=False))


@given(st.dictionaries(st.integers(0, 40), st.from_regex("[0-9a-f]{16}", fullmatch=True)))
def test_digests_of_parts_come_back(digests: dict[int, str]) -> None:
    entry = OutputEntry(url="out", column="embedding").with_digests(digests)
    again = OutputEntry.model_validate_json(entry.model_dump_json())
    assert again.digests() == digests


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)))
def test_rows_that_are_gone_add_up(first: set[int], more: set[int]) -> None:
    entry = SegmentEntry(name="0" * 32, sha256="0" * 64, bytes=1, rows=30).without(first).without(more)
    assert entry.gone_rows().tolist() == sorted(first | more)
    assert entry.live == 30 - len(first | more)


def empty() -> Manifest:
    return Manifest(space=described(space()), kept={}, segment_rows=8, exact_below=256)


def test_of_two_writers_the_second_is_told(tmp_path: Path) -> None:
    storage, place = Storage(), str(tmp_path)
    assert read_manifest(place, storage) is None
    assert commit(place, storage, empty(), None) is not None
    assert commit(place, storage, empty(), None) is None
    state, etag = read_manifest(place, storage) or pytest.fail("no manifest")
    written = commit(place, storage, state, etag)
    assert written is not None
    assert written.state == state.state + 1
    assert commit(place, storage, state, etag) is None
    assert (read_manifest(place, storage) or pytest.fail("no manifest"))[0] == written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ('{"version": 2}', "is not of version 1"),
        ('{"space": {}}', "kept: Field required"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=words):
        read_manifest(str(tmp_path), Storage())
