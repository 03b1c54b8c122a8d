"""Parquet files that are damaged or meant to do harm: a message or rows, and bounded memory."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnnbatch.errors import UserError
from cnnbatch.sources.parquet import in_turn
from cnnbatch.sources.parquet.in_turn import read_in_turn
from cnnbatch.storage.parquet import files as parquet_files
from cnnbatch.storage.parquet import pages as parquet_pages
from cnnbatch.storage.parquet.files import PageLimits, ParquetTable
from cnnbatch.storage.parquet.pages import page_header, read_footer
from cnnbatch.storage.parquet.thrift_compact import Damaged, OverLimit
from cnnbatch.types import Failure, ImageRef
from tests.sourcing import failure, keys, read, source

ROWS = 60
OBJECT = {"label": "cat", "box": {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}}
IMAGES = [f"<{number}>".encode() * (20 + number) for number in range(ROWS)]
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hugging face": (
        {"image": [{"bytes": one, "path": None} for one in IMAGES], "label": [0, 1, 2] * 20},
        {},
    ),
    "no key": ({"image": IMAGES}, {}),
    "keyed": ({"image": IMAGES, "id": [f"k{number}" for number in range(ROWS)]}, {"key": "id"}),
    "objects": ({"image": IMAGES, "objects": [[OBJECT] * (number % 4) for number in range(ROWS)]}, {}),
    "kept": (
        {"image": IMAGES, "day": pa.array(range(ROWS), pa.date32()), "n": list(range(ROWS))},
        {"keep": ("day", "n")},
    ),
    "list": (
        {"uri": [f"a/{number}.jpg" for number in range(ROWS)], "label": ["a", "b"] * 30},
        {"format": "list", "label": "label"},
    ),
}
WRITTEN: list[dict[str, Any]] = [
    {},
    {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 20, "write_page_checksum": True},
    {"compression": "none", "use_dictionary": False, "row_group_size": 20},
]


HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def written(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def table(data: bytes) -> ParquetTable:
    return ParquetTable(io.BytesIO(data), 1 << 20)


# What is read before Arrow decodes


@pytest.mark.parametrize("options", [*WRITTEN, {"row_group_size": 7, "data_page_size": 100}])
@pytest.mark.parametrize("kind", KINDS)
def test_footer_and_pages_are_what_arrow_says_they_are(kind: str, options: dict[str, Any]) -> None:
    data = written(KINDS[kind][0], **options)
    _, groups = read_footer(io.BytesIO(data), len(data))
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    assert [group.rows for group in groups] == [
        metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)
    ]
    for number, group in enumerate(groups):
        for place, ours in enumerate(group.columns):
            column = metadata.row_group(number).column(place)
            starts = (column.dictionary_page_offset, column.data_page_offset)
            assert ours.start == min(start for start in starts if start is not None)
            assert ours.end - ours.start == column.total_compressed_size
            assert (ours.values, ours.size) == (column.num_values, column.total_uncompressed_size)
            assert ours.nulls == (column.statistics.null_count if column.statistics else None)
            at, values, size = ours.start, 0, 0
            while at < ours.end:
                found = page_header(data[at : ours.end])
                assert found is not None
                page, length = found
                at, size = at + length + page.stored, size + length + page.size
                values += 0 if page.kind == parquet_pages.DICTIONARY else page.values
            assert (at, values, size) == (ours.end, column.num_values, column.total_uncompressed_size)


def test_a_header_that_goes_on_is_waited_for() -> None:
    data = written({"n": [1, 2, 3]}, use_dictionary=False)
    start = read_footer(io.BytesIO(data), len(data))[1][0].columns[0].start
    whole = page_header(data[start : start + 200])
    assert whole is not None
    assert [page_header(data[start : start + count]) for count in range(whole[1])] == [None] * whole[1]
    with pytest.raises(Damaged):
        page_header(b"\x1f" * 100)


# Damage


def mutated(whole: bytes, rng: random.Random) -> bytes:
    data = bytearray(whole)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(rng.choice((0, footer)), len(data))
        how = rng.random()
        if how < 0.8:
            data[at] = rng.randrange(256) if how < 0.6 else data[at] ^ 1 << rng.randrange(8)
        elif how < 0.9:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def try_mutated(folder: Path, kind: str, options: dict[str, Any], rounds: int) -> None:
    """Read damaged copies: each gives rows, of which those that are read may be failures, or a message."""
    columns, fields = KINDS[kind]
    whole, rng = written(columns, **options), random.Random(f"{kind} {options}")
    path, said = folder / "a.parquet", []
    for _ in range(rounds):
        path.write_bytes(mutated(whole, rng))
        try:
            found = source(str(path), **{"format": "parquet", **fields})
            refs = list(found.refs())
            if kind != "list":
                assert len(read(found, refs)) == len(refs)
        except UserError as error:
            said.append(str(error))
    assert 0 < len(said) < rounds
    assert all(str(path) in text for text in said)


@pytest.mark.parametrize("options", WRITTEN)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_or_a_row(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    try_mutated(tmp_path, kind, options, 20)


@pytest.mark.long
@pytest.mark.parametrize("options", WRITTEN)
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage_is_told_or_a_row(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    try_mutated(tmp_path, kind, options, 400)


def varint(number: int) -> bytes:
    """Return a number as Thrift's compact protocol has it."""
    left, found = number << 1, bytearray()
    while left > 127:
        found.append(left & 127 | 128)
        left >>= 7
    return bytes([*found, left])


def claiming(data: bytes, rows: int, claimed: int, where: str) -> bytes:
    """Replace the number of ``rows`` in the footer: that of the file, of its row group, of its columns."""
    length = int.from_bytes(data[-8:-4], "little")
    parts = data[-8 - length : -8].split(varint(rows))
    kinds = ["file", *["column"] * (len(parts) - 3), "group"]  # their order in FileMetaData
    numbers = [varint(claimed if kind in where else rows) for kind in kinds]
    footer = parts[0] + b"".join(number + part for number, part in zip(numbers, parts[1:], strict=True))
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


@pytest.mark.parametrize("where", ["file group column", "file", "group", "file group", "column"])
@pytest.mark.parametrize("fields", [{"format": "parquet"}, {"format": "list"}, {"key": "uri"}], ids=str)
def test_a_footer_that_claims_more_rows_than_there_are(
    where: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    rows = 3217
    columns = {"image": [b"A"] * rows, "uri": [f"{number}.jpg" for number in range(rows)]}
    data = written(columns, write_statistics=False)
    (tmp_path / "a.parquet").write_bytes(claiming(data, rows, 10**12, where))
    with pytest.raises(UserError, match=r"a\.parquet is no whole Parquet file: .*(claims|rows|values)"):
        keys(str(tmp_path / "a.parquet"), **fields)
    (tmp_path / "a.parquet").write_bytes(claiming(data, rows, rows, where))
    assert len(keys(str(tmp_path / "a.parquet"), **fields)) == rows


def test_columns_outside_of_the_file_and_shared_ones_are_told(tmp_path: Path) -> None:
    data = written({"image": [b"A"] * 10}, use_dictionary=False)
    for cut in (5, 40):
        (tmp_path / "a.parquet").write_bytes(data[:4] + data[4 + cut :])
        with pytest.raises(UserError, match="is no whole Parquet file: a column is said to lie outside"):
            keys(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").write_bytes(data[:-4] + b"PARE")
    with pytest.raises(UserError, match="is no whole Parquet file: it is encrypted"):
        keys(str(tmp_path / "a.parquet"))


# Limits

PEAK = """
import json, resource, sys
from cnnbatch.errors import UserError
from cnnbatch.config.input import Input
from cnnbatch.types import Failure, Shard
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before, found = peak_bytes(), []
try:
    source = open_source(Input(url=sys.argv[1], format="parquet", keep=tuple(sys.argv[2:])), Storage())
    for reader in source.read(Shard(0, tuple(source.refs()))):
        content = reader()
        found.append(content.code if isinstance(content, Failure) else len(content))
        del content, reader
except UserError as error:
    found = str(error)
print(json.dumps([found, (peak_bytes() - before) >> 20]))
"""


def peak(path: Path, *keep: str) -> tuple[Any, int]:
    """Read a file in a process of its own; return what it gave, and its peak in MiB above the start's."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, path, *keep], capture_output=True, text=True, check=True
    )
    found, above = json.loads(done.stdout)
    return found, above


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["dictionary", "DELTA_BYTE_ARRAY"])
def test_a_cell_that_repeats_costs_no_memory(encoding: str, tmp_path: Path) -> None:
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 64), pa.array([b"A" * 20_000_000]))
    path = tmp_path / "a.parquet"
    if encoding == "dictionary":
        pq.write_table(pa.table({"image": cells}), path, compression="zstd")
    else:
        plain = cells.slice(0, 16).dictionary_decode()
        options: dict[str, Any] = {
            "use_dictionary": False,
            "column_encoding": {"image": encoding},
            "data_page_size": 1 << 30,
        }
        pq.write_table(pa.table({"image": plain}), path, compression="zstd", **options)
    assert path.stat().st_size < 20_000
    sizes, above = peak(path)
    assert sizes == [20_000_000] * (64 if encoding == "dictionary" else 16)
    assert above < 500  # all of them are 1,280 and 320 MB, and would be there twice


def test_a_row_of_a_list_that_repeats_a_cell_is_told(tmp_path: Path) -> None:
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), pa.array(["x" * 30_000]))
    objects = pa.ListArray.from_arrays(pa.array([0, 300_000], pa.int32()), labels)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"A"], "note": objects}), path, compression="zstd")
    message, above = peak(path, "note")
    assert "a row has 9,00" in message
    assert above < 300  # of 9 GB


@pytest.mark.slow
def test_a_label_of_a_hundred_megabytes_is_told_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"A"], "label": ["x" * 140_000_000]}), path, compression="zstd")
    message, above = peak(path)
    assert "column label: a page of 140,000,00" in message
    assert above < 150


def test_a_page_over_the_limit_is_the_failure_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnbatch.sources.parquet.source._IMAGES", PageLimits(10_000, 5_000))
    cells = [b"A" * 9_000, b"B", b"C" * 20_000, b"D" * 100]
    options = {"row_group_size": 1, "compression": "zstd"}
    (tmp_path / "a.parquet").write_bytes(written({"image": cells}, **options))
    results = read(source(str(tmp_path / "a.parquet")))
    assert [failure(results[0]), failure(results[2])] == [("read", "too_large")] * 2
    assert [results[1], results[3]] == [b"B", b"D" * 100]
    assert isinstance(results[2], Failure)
    assert "a page of 20,004 bytes; at most 10,000 are read" in results[2].message
    monkeypatch.setattr("cnnbatch.sources.parquet.source.MAX_BYTES", 50)
    assert failure(read(source(str(tmp_path / "a.parquet")))[3]) == ("read", "too_large")


@pytest.mark.parametrize(
    ("columns", "fields", "message"),
    [
        ({"label": ["x" * 70_000]}, {}, "column 'label': expected at most 4,096 characters, got 70,000"),
        ({"id": ["x" * 70_000]}, {"key": "id"}, "column 'id': expected at most 4,096 characters"),
        ({"note": [list(range(3_000_000))]}, {"keep": ("note",)}, "a row has .* bytes; at most 16,777,216"),
        ({f"c{number}": [1] for number in range(50)}, {}, "51 columns; at most 50 are read"),
    ],
)
def test_limits_beside_the_images(
    columns: dict[str, Any],
    fields: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet_files, "COLUMNS", 50)
    (tmp_path / "a.parquet").write_bytes(written({"image": [b"A"], **columns}))
    with pytest.raises(UserError, match=message):
        keys(str(tmp_path / "a.parquet"), **fields)


def test_a_footer_over_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written({"image": IMAGES}, row_group_size=1)
    monkeypatch.setattr(parquet_pages, "FOOTER_PARTS", 100)
    with pytest.raises(OverLimit, match="more parts than are read"):
        table(data)
    monkeypatch.setattr(parquet_pages, "FOOTER_BYTES", 100)
    with pytest.raises(OverLimit, match="at most 100 are read"):
        table(data)


def test_many_rows_may_not_be_large_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = pa.DictionaryArray.from_arrays(pa.array([0] * 300), pa.array(["x" * 1000])).dictionary_decode()
    path = tmp_path / "a.parquet"
    for name, fields in (("image", {"keep": ("note",)}), ("uri", {"format": "list", "keep": ("note",)})):
        cells = pa.array([str(number).encode() for number in range(300)], pa.binary())
        first = cells if name == "image" else cells.cast(pa.string())
        path.write_bytes(written({name: first, "note": notes}))
        monkeypatch.setattr(parquet_files, "LISTED_ROWS", 100)
        monkeypatch.setattr(parquet_files, "LISTED_BYTES", 400_000)
        assert len(keys(str(path), **fields)) == 300
        monkeypatch.setattr(parquet_files, "LISTED_BYTES", 200_000)
        with pytest.raises(UserError, match="300 rows have .* beside their images; at most 200,000 are read"):
            keys(str(path), **fields)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_size": 500}], ids=str)
def test_fewer_rows_at_once_are_the_same_rows(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [str(number % 50) * (1 if number < 700 else 40) for number in range(1000)]
    found = table(written({"text": texts}, row_group_size=400, compression="zstd", **options))
    monkeypatch.setattr(parquet_files, "_BATCH", 2000)
    sizes = [batch.num_rows for group in range(3) for batch in found.batches(group, ["text"], 300)]
    assert min(sizes) < 100
    rows = [row["text"] for group in range(found.groups) for row in found.cells(group, ["text"], 300)]
    assert rows == texts


# Handing out


def test_images_are_fetched_ahead_as_far_as_their_bytes_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_turn, "AHEAD_BYTES", 1000)
    begun: list[int] = []
    closed: list[bool] = []

    def fetch(ref: ImageRef) -> bytes:
        begun.append(int(ref.key))
        return bytes(600)

    readers = read_in_turn([ImageRef(str(n), "") for n in range(20)], fetch, lambda: closed.append(True))
    for number, reader in enumerate(readers):
        assert len(begun) <= number + 4  # one is handed out, two are there, one is on its way
        assert reader() == bytes(600)
    assert begun == list(range(20))
    assert closed == [True]


def test_an_error_is_its_readers_and_one_who_stops_early_ends_the_thread() -> None:
    def fetch(ref: ImageRef) -> bytes:
        if ref.key == "1":
            raise OSError("gone")
        return ref.key.encode()

    refs = [ImageRef(str(number), "") for number in range(3)]
    first, second, third = read_in_turn(refs, fetch, lambda: None)
    assert (first(), third()) == (b"0", b"2")
    with pytest.raises(OSError, match="gone"):
        second()

    def endless() -> Iterator[ImageRef]:
        while True:
            yield refs[0]

    closed: list[bool] = []
    stopped = read_in_turn(endless(), fetch, lambda: closed.append(True))
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]  # it is a generator
    for _ in range(100):
        if closed:
            break
        time.sleep(0.01)
    assert closed == [True]


# What there is in place of one column of images


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"path": "a.jpg"}]}, "image has paths alone.*input.format=list"),
        (
            {"image": pa.array([{"bytes": None, "path": "a.jpg"}], HUGGING_FACE)},
            "column 'image' have paths alone, no bytes.*push_to_hub",
        ),
        ({"images": [[{"bytes": b"A", "path": None}]]}, "a row of images has a list of images.*explode"),
        ({"pages": [[b"A", b"B"]]}, "a row of pages has a list of images"),
        (
            {"left": [{"bytes": b"A", "path": ""}], "right": [{"bytes": b"A", "path": ""}]},
            "several have bytes: left, right.*rename",
        ),
    ],
)
def test_what_there_is_in_place_of_one_column_of_images(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").write_bytes(written(columns))
    with pytest.raises(UserError, match=f"(?s){message}"):
        keys(str(tmp_path / "a.parquet"))
    with pytest.raises(UserError, match=f"(?s){message}"):
        keys(str(tmp_path))
