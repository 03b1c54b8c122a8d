from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.sources.lists.source import ListSource
from cnnbatch.sources.parquet.source import ParquetSource, _Groups
from cnnbatch.storage import Storage, unique
from cnnbatch.truth import LABEL_SCHEMA, OBJECTS_SCHEMA, classes_of
from cnnbatch.types import Failure, ImageRef, Row, Shard, Source
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import QUICK, failure, keys, read, source

pytest_plugins = ("tests.s3",)


def image(number: int, size: int = 20) -> bytes:
    return f"<{number}>".encode() * size


def write(path: Path, columns: dict[str, Any], features: Any = None, **options: Any) -> str:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def truth_of(found: Source) -> list[dict[str, Any]]:
    refs = tuple(found.refs())
    (shard,) = page_shards(page_table([Shard(0, refs)], found.columns))  # as a worker gets it, by the plan
    truth = found.truth(shard)
    assert truth is not None
    return [{name: value for name, value in row.items() if value is not None} for row in truth.to_pylist()]


# What is in the files


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    features = {"label": class_label("cat", "dog"), "image": {"_type": "Image"}}
    for name, numbers in (("train/b.parquet", range(3)), ("a.PARQUET", range(3, 5))):
        images = [{"bytes": image(number), "path": None} for number in numbers]
        write(tmp_path / name, {"image": images, "label": [number % 2 for number in numbers]}, features)
    write(tmp_path / ".hidden.parquet", {"x": [1]})
    (tmp_path / "README.md").write_text("not one of them")
    found = source(str(tmp_path))
    assert isinstance(found, ParquetSource)
    refs = list(found.refs())
    assert [ref.key for ref in refs] == [
        "a.PARQUET#0",
        "a.PARQUET#1",
        *(f"train/b.parquet#{n}" for n in range(3)),
    ]
    assert refs[4].at == Row(2)
    assert (refs[4].uri, bool(refs[4].etag)) == (f"{tmp_path}/train/b.parquet", True)
    assert read(found) == [image(number) for number in (3, 4, 0, 1, 2)]
    assert found.truth_schema is not None
    assert found.truth_schema.equals(LABEL_SCHEMA)
    assert [(one.name, one.id) for one in classes_of(found.truth_schema)] == [("cat", 0), ("dog", 1)]
    assert [row["label"] for row in truth_of(found)] == ["dog", "cat", "cat", "dog", "cat"]
    assert truth_of(found)[0]["image_id"] == "a.PARQUET#0"
    assert len(pickle.dumps(found)) < 4000
    again = pickle.loads(pickle.dumps(found))
    assert list(again.refs()) == refs
    assert read(again, refs[3:]) == [image(1), image(2)]
    assert keys(str(tmp_path / "a.PARQUET")) == ["a.PARQUET#0", "a.PARQUET#1"]
    assert keys(str(tmp_path / "**/*.parquet")) == [f"train/b.parquet#{number}" for number in range(3)]


@pytest.mark.parametrize(
    "columns",
    [
        {"image": pa.array([b"A"], pa.binary())},
        {"IMG": pa.array([b"A"], pa.large_binary()), "thumbnail": [b"x"]},
        {"image": ["a name"], "jpg": [b"A"], "url": ["http://x"]},
        {"odd": pa.array([{"bytes": b"A", "path": "x.jpg"}])},
        {"image": pa.array([{"path": "x.jpg", "bytes": b"A"}]), "mask": [b"x"]},
        {"pixels": pa.array([b"A"]).dictionary_encode(), "n": [1]},
        {"image.bytes": [b"A"], "n": [1]},
    ],
)
def test_the_column_of_images_is_found(columns: dict[str, Any], tmp_path: Path) -> None:
    assert read(source(write(tmp_path / "a.parquet", columns))) == [b"A"]


@pytest.mark.parametrize(
    ("label", "features", "beside", "expected", "classes"),
    [
        (["cat", "", None], None, None, ["cat", None, None], 0),
        (pa.array(["cat", "dog", "cat"]).dictionary_encode(), None, None, ["cat", "dog", "cat"], 0),
        (pa.array([7, -1, None], pa.int8()), None, None, ["7", "-1", None], 0),
        (pa.array([1, -1, None], pa.int8()), class_label("cat", "dog"), "x\ny\n", ["dog", None, None], 2),
        (pa.array([1, 0, 0]).dictionary_encode(), None, "cat\r\nsea lion\n", ["sea lion", "cat", "cat"], 2),
        ([0.5, 1.0, None], None, "cat\ndog\n", ["0.5", "1.0", None], 0),
    ],
)
def test_labels(
    label: Any, features: Any, beside: str | None, expected: list[str | None], classes: int, tmp_path: Path
) -> None:
    named = None if features is None else {"label": features}
    url = write(tmp_path / "a.parquet", {"image": [b"A", b"B", b"C"], "label": label}, named)
    if beside is not None:
        (tmp_path / "classes.txt").write_text(beside)
    found = source(url)
    assert [row.get("label") for row in truth_of(found)] == expected
    assert found.truth_schema is not None
    assert len(classes_of(found.truth_schema)) == classes


def test_the_job_names_the_columns(tmp_path: Path) -> None:
    columns = {
        "image": [b"A", b"B"],
        "number": pa.array([5, 6], pa.int16()),
        "class": ["x", "y"],
        "label": [1, 2],
        "box": [{"x": 1, "y": 0.5}, None],
        "kind": pa.array(["a", "b"]).dictionary_encode(),
    }
    url = write(tmp_path / "a.parquet", columns)
    found = source(url, key="number", label="class", keep=("box", "kind", "class", "box"))
    refs = list(found.refs())
    assert [ref.key for ref in refs] == ["5", "6"]
    assert dict(refs[0].columns) == {"box": {"x": 1, "y": 0.5}, "kind": "a", "class": "x", "label": "x"}
    assert found.columns.field("box").type == pa.struct([("x", pa.int64()), ("y", pa.float64())])
    assert found.columns.field("kind").type == pa.string()
    assert [row["label"] for row in truth_of(found)] == ["x", "y"]
    assert list(found.refs(after=refs[0])) == refs[1:]
    assert source(url, keep=("label",)).columns == pa.schema([("label", pa.string())])
    bare = source(write(tmp_path / "b.parquet", {"image": [b"A"], "label": [[1, 2]]}))
    assert bare.truth_schema is None  # several labels are not one
    assert bare.truth(Shard(0, tuple(bare.refs()))) is None


BOX = {"x1": 1.0, "y1": 2.0, "x2": 4.0, "y2": 6.0}
COCO = {"label": "dog", "box": BOX, "crowd": False, "area": 12.0, "ignore": False}
NAMES = class_label("cat", "dog")
NESTED = {"feature": {"bbox": {"feature": {}, "_type": "Sequence"}, "category": NAMES}, "_type": "Sequence"}
LISTS = {"bbox": {"feature": {}}, "category": {"feature": NAMES, "_type": "Sequence"}}


@pytest.mark.parametrize(
    ("objects", "feature", "expected"),
    [
        (
            [{"label": "dog", "box": BOX, "difficult": True}],
            None,
            {"label": "dog", "box": BOX, "difficult": True},
        ),
        ({"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [1], "id": [9]}, NESTED, COCO),
        ({"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [1]}, LISTS, COCO),
        ([{"bbox": [1.0, 2.0, 3.0, 4.0], "category": 1}], [{"category": NAMES}], COCO),
        (
            {"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": ["dog"], "iscrowd": [1], "area": [3.5]},
            None,
            {**COCO, "crowd": True, "area": 3.5},
        ),
    ],
)
def test_objects(objects: Any, feature: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    none = [] if isinstance(objects, list) else {name: [] for name in objects}
    columns = {
        "image": [b"A", b"B", b"C"],
        "label": ["is not the truth"] * 3,
        "objects": [objects, none, None],
        "width": [10, 11, None],
        "height": [20, 21, None],
    }
    found = source(write(tmp_path / "a.parquet", columns, {"objects": feature}))
    assert found.truth_schema is not None
    assert found.truth_schema.equals(OBJECTS_SCHEMA)
    assert len(classes_of(found.truth_schema)) == (0 if feature is None else 2)
    rows = truth_of(found)
    (one,) = rows[0]["objects"]
    assert {name: value for name, value in one.items() if value is not None} == expected
    assert (rows[0]["image_id"], rows[0]["width"], rows[0]["height"]) == ("a.parquet#0", 10, 20)
    assert rows[1]["objects"] == []
    assert rows[2] == {"image_id": "a.parquet#2"}


MISTAKES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"a": [b"A"], "b": [b"B"]},
        {},
        r"one column of image bytes was expected, named image.*have bytes: a, b",
    ),
    ({"n": [1], "image": ["x"]}, {}, r"one column of image bytes .* n \(int64\), image \(string\)"),
    ({"image": [b"A"], "klass": ["x"]}, {"label": "class"}, r"no column 'class'; did you mean 'klass'"),
    (
        {"image": [b"A"], "x": [[1]]},
        {"label": "x"},
        r"text or numbers was expected in the column 'x', got list",
    ),
    (
        {"image": [b"A"], "x": [0.5]},
        {"key": "x"},
        r"whole numbers was expected in the column 'x', got double",
    ),
    ({"image": [b"A"]}, {"keep": ("image",)}, r"input\.keep: 'image' is the column of the images themselves"),
    ({"image": [b"A"], "uri": ["x"]}, {"keep": ("uri",)}, r"'uri' is a column that every row has already"),
    (
        {"image": [b"A"], "label": [1], "y": [2]},
        {"label": "y", "keep": ("label",)},
        r"'label' is the name that",
    ),
    ({"image": [b"A"], "objects": [[{"bbox": [0.0] * 4}]]}, {}, r"'objects' has bbox; expected a list of"),
    (
        {"image": [b"A"], "objects": [[{"label": "x", "bbox": [0.0] * 3}]]},
        {},
        r"row 0.*expected the bbox \[x, y",
    ),
    (
        {"image": [b"A"], "objects": [[{"label": "", "bbox": [0.0] * 4}]]},
        {},
        r"expected a label or category in",
    ),
    ({"image": [b"A"], "objects": [[{"label": "x", "box": {"x1": 1}}]]}, {}, r"expected the box \{x1"),
    ({"image": [b"A"], "objects": [{"category": [1, 2], "bbox": [[0.0] * 4]}]}, {}, r"lists of one length"),
    (
        {"image": [b"A"], "objects": [[{"label": "x", "box": BOX, "mask": "?"}]]},
        {},
        r"row 0, column 'objects': an object has a field of another type",
    ),
    (
        {"image": [b"A", b"B"], "id": ["x", "x"]},
        {"key": "id"},
        r"a\.parquet#0 and a\.parquet#1 have the same id 'x'",
    ),
    ({"image": [b"A"], "id": [""]}, {"key": "id"}, r"row 0, column 'id': expected a key, got nothing"),
    ({"image": pa.array([], pa.binary())}, {}, r"holds no row"),
]


@pytest.mark.parametrize(("columns", "fields", "message"), MISTAKES)
def test_mistakes(columns: dict[str, Any], fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError) as error:
        keys(str(tmp_path / "*.parquet"), **fields)
    assert re.search(message, str(error.value), re.DOTALL), error.value
    assert str(tmp_path) in str(error.value) or "keep" in fields or "label" in fields or "key" in fields


def test_a_class_without_a_name_is_told(tmp_path: Path) -> None:
    url = write(
        tmp_path / "a.parquet", {"image": [b"A", b"B"], "label": [0, 2]}, {"label": class_label("x", "y")}
    )
    with pytest.raises(UserError, match=r"row 1, column 'label': expected a class from 0 to 1, got 2"):
        keys(url)


def test_keys_are_unique_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for early in (1 << 17, 0):
        monkeypatch.setattr(unique, "_EARLY", early)
        write(tmp_path / "a.parquet", {"image": [b"A", b"B"], "id": ["x", "y"]})
        write(tmp_path / "b.parquet", {"image": [b"C", b"D"], "id": ["z", "y"]})
        with pytest.raises(UserError, match=r"a\.parquet#1 and b\.parquet#1 have the same id 'y'"):
            keys(str(tmp_path), key="id")
        write(tmp_path / "b.parquet", {"image": [b"C", b"D"], "id": ["z", "w"]})
        found = source(str(tmp_path), key="id")
        refs = list(found.refs())
        assert [ref.key for ref in refs] == ["x", "y", "z", "w"]
        for number, ref in enumerate(refs):
            assert list(found.refs(after=ref)) == refs[number + 1 :]
        with pytest.raises(UserError, match="no longer holds 'gone'"):
            list(found.refs(after=ImageRef("gone", refs[0].uri, Row(0))))


# Which files are meant


def test_a_file_of_a_web_server(tmp_path: Path, web: WebServer) -> None:
    write(tmp_path / "a.parquet", {"image": [b"A", b"B"], "label": [1, 0]})
    bodies = {"/x/a.parquet?sig=S": (tmp_path / "a.parquet").read_bytes(), "/x/classes.txt": b"cat\ndog\n"}
    web.answer = lambda method, path: Reply(body=bodies[path]) if path in bodies else Reply(404)
    found = source(f"{web.url()}/x/a.parquet?sig=S")
    assert [ref.key for ref in found.refs()] == ["a.parquet#0", "a.parquet#1"]
    assert [row["label"] for row in truth_of(found)] == ["dog", "cat"]
    assert read(found) == [b"A", b"B"]


def test_what_is_recognised(tmp_path: Path) -> None:
    listing = write(tmp_path / "list.parquet", {"url": ["a.jpg", "b.jpg"], "md5": [b"12", b"34"]})
    assert isinstance(source(listing), ListSource)
    assert keys(listing) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
    with pytest.raises(UserError, match="the list .* cannot be read"):
        source(str(tmp_path / "none.parquet"))
    write(tmp_path / "x.parquet/part-0.parquet", {"image": [b"A"]})  # Spark calls a folder so
    assert keys(str(tmp_path / "x.parquet")) == ["part-0.parquet#0"]
    assert keys(str(tmp_path / "x.parquet/*.parquet")) == ["part-0.parquet#0"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"A")
    write(tmp_path / "photos/metadata.parquet", {"image": [b"B"]})
    assert keys(str(tmp_path / "photos")) == ["a.jpg"]
    assert keys(str(tmp_path / "photos"), format="parquet") == ["metadata.parquet#0"]
    with pytest.raises(UserError, match=r"expected Parquet files \(\.parquet\) below .* found none"):
        keys(str(tmp_path / "nowhere"), format="parquet")
    with pytest.raises(UserError, match=r"Parquet files that match no\*\.parquet below"):
        keys(str(tmp_path / "no*.parquet"))
    with pytest.raises(UserError, match="got 2 addresses"):
        source([listing, listing], format="parquet")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"image": [b"A"], "n": [1.5]},
            r"b\.parquet, column 'n': expected as in the first file int64, got double",
        ),
        (
            {"image": ["A"], "n": [1]},
            r"b\.parquet, column 'image': expected as in the first file binary, got str",
        ),
        (
            {"image": [b"A"]},
            r"b\.parquet, column 'n': expected .* int64, its columns: label \(int64\), image \(bin",
        ),
        (
            {"image": [b"A"], "n": [1], "label": [0]},
            r"b\.parquet, column 'label': .* the classes x, y, got y, x",
        ),
    ],
)
def test_files_of_other_schemas(second: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"A"], "n": [1], "label": [0]}, {"label": class_label("x", "y")})
    write(tmp_path / "b.parquet", {"label": [0], **second}, {"label": class_label("y", "x")})
    with pytest.raises(UserError, match=message):
        keys(str(tmp_path), keep=("n",))


def test_files_of_one_schema_written_by_several_programs(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"A"], "n": ["x"], "label": ["y"]})
    large = {"image": pa.array([b"B"], pa.large_binary()), "n": pa.array(["x"], pa.large_string())}
    write(tmp_path / "b.parquet", {**large, "label": pa.array(["z"]).dictionary_encode(), "extra": [1]})
    write(tmp_path / "c.parquet", {"image": [b"C"], "n": pa.nulls(1), "label": pa.nulls(1)})
    found = source(str(tmp_path), keep=("n",))
    assert read(found) == [b"A", b"B", b"C"]
    assert [row.get("label") for row in truth_of(found)] == ["y", "z", None]


# Damage, and whose fault it is


def damaged(path: Path, column: str, group: int) -> None:
    """Overwrite the middle of a column's data in one row group."""
    held = pq.ParquetFile(path).metadata.row_group(group)
    columns = [held.column(number) for number in range(held.num_columns)]
    (ours,) = [one for one in columns if one.path_in_schema == column]
    data = bytearray(path.read_bytes())
    middle = ours.data_page_offset + ours.total_compressed_size // 2
    data[middle : middle + 8] = bytes(byte ^ 255 for byte in data[middle : middle + 8])
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_damaged_row_group_is_its_rows_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image(number, 500) for number in range(40)]
    options = {"row_group_size": 10, "write_page_checksum": True, "use_dictionary": False}
    path = tmp_path / "a.parquet"
    write(path, {"image": images, "label": ["x"] * 40}, compression="none", **options)
    found = source(str(path))
    refs = list(found.refs())
    damaged(path, "image", 2)
    results = read(found, refs)
    assert results[:20] + results[30:] == images[:20] + images[30:]
    assert {failure(one) for one in results[20:30]} == {("read", "unreadable")}
    assert failure(read(found, refs[25:26])[0]) == ("read", "unreadable")
    begun: list[int] = []
    begin = _Groups._begin

    def counted(groups: _Groups, group: int) -> None:
        begun.append(group)
        begin(groups, group)

    monkeypatch.setattr(_Groups, "_begin", counted)
    read(found, refs)
    assert begun == [0, 1, 2, 3]  # no row of the damaged group begins it anew
    damaged(path, "label", 1)
    with pytest.raises(UserError, match=r"a\.parquet is no whole Parquet file"):
        list(found.refs())


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": [b"A"]})
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"b\.parquet is no whole Parquet file: .*\n  what to do: fetch"):
        keys(str(tmp_path))


def test_cells_without_an_image_are_failures(tmp_path: Path) -> None:
    nested = pa.array(
        [None, {"bytes": None, "path": "x"}, {"bytes": b"", "path": None}, {"bytes": b"A", "path": None}]
    )
    results = read(source(write(tmp_path / "a.parquet", {"image": nested})))
    assert [failure(one) for one in results[:2]] == [("read", "empty")] * 2
    assert results[2:] == [b"", b"A"]


def test_files_that_change_or_vanish(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in "abc":
        write(folder / f"{name}.parquet", {"image": [name.encode(), b"x"]})
    found = source(str(folder))
    refs = list(found.refs())
    write(folder / "a.parquet", {"image": [b"another", b"one"]})
    (folder / "b.parquet").unlink()
    results = read(found, refs)
    assert {failure(one) for one in results[:2]} == {("read", "unreadable")}
    assert isinstance(results[0], Failure)
    assert "changed since it was listed" in results[0].message
    assert [failure(one) for one in results[2:4]] == [("read", "not_found")] * 2
    assert results[4:] == [b"c", b"x"]
    with pytest.raises(UserError, match="the listing goes on in .*b.parquet"):
        list(found.refs(after=refs[3]))
    shutil.rmtree(folder)
    with pytest.raises(EnvironmentFault, match="missing or empty"):
        read(found, refs)


class Handled(Storage):
    """A storage whose files are read through ``Handle``."""

    handle: type[io.RawIOBase]

    def __init__(self, handle: type[io.RawIOBase]) -> None:
        super().__init__(QUICK)
        self.handle = handle

    def open(self, uri: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(cast(Any, self.handle)(uri), 1 << 18))


def handle(after: int = 1 << 60, fault: Exception | None = None) -> type[io.FileIO]:
    class Handle(io.FileIO):
        asked: list[int] = []

        def readinto(self, buffer: Any) -> int:
            self.asked.append(len(memoryview(buffer)))
            if len(self.asked) > after and fault is not None:
                raise fault
            return super().readinto(buffer) or 0

    return Handle


def test_a_storage_that_goes_down_is_no_row(tmp_path: Path) -> None:
    url = write(tmp_path / "a.parquet", {"image": [image(number, 99_999) for number in range(60)]})
    refs = list(source(url).refs())
    found = source(url, Handled(handle(3, EnvironmentFault("the storage is down", "wait"))))
    with pytest.raises(EnvironmentFault, match="the storage is down"):
        read(found, refs)
    with pytest.raises(EnvironmentFault, match="check that disk or mount"):
        read(source(url, Handled(handle(3, OSError(5, "Input/output error")))), refs)


# Addresses


@settings(max_examples=40)
@given(st.data())
def test_any_image_is_found_and_any_listing_resumed(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=4))
    nested, keyed = data.draw(st.booleans()), data.draw(st.booleans())
    number = 0
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnnbatch.sources.parquet.source._BATCH_ROWS", data.draw(st.integers(1, 30)))
        patch.setattr("cnnbatch.sources.parquet.source._LISTED_ROWS", data.draw(st.integers(1, 30)))
        for place, size in enumerate(sizes):
            images = [image(number + row, (row * 7) % 40) for row in range(size)]
            cells: Any = [{"bytes": one, "path": ""} for one in images] if nested else images
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if nested else pa.binary()
            columns = {
                "image": pa.array(cells, kind),
                "id": pa.array(range(number, number + size), pa.int64()),
            }
            rows = data.draw(st.integers(1, 40))
            write(Path(folder, f"{place}.parquet"), columns, row_group_size=rows, data_page_size=200)
            number += size
        if number == 0:
            return
        found = source(folder, key="id" if keyed else None, keep=("id",))
        refs = list(found.refs())
        assert [ref.columns["id"] for ref in refs] == list(range(number))
        chosen = data.draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=50).map(sorted))
        expected = [image(n, (_row(refs[n]) * 7) % 40) for n in chosen]
        assert read(found, [refs[n] for n in chosen]) == expected
        behind = data.draw(st.integers(0, number - 1))
        assert list(found.refs(after=refs[behind])) == refs[behind + 1 :]


def _row(ref: ImageRef) -> int:
    assert isinstance(ref.at, Row)
    return ref.at.index


def test_images_out_of_order_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image(number) for number in range(100)]
    found = source(write(tmp_path / "a.parquet", {"image": images}, row_group_size=30))
    refs = list(found.refs())
    monkeypatch.setattr("cnnbatch.sources.parquet.source._BATCH_ROWS", 7)
    order = [99, 0, 50, 50, 31, 51, 20, 99]
    assert read(found, [refs[number] for number in order]) == [images[number] for number in order]


def test_a_bucket_gives_what_the_folder_gives(tmp_path: Path, bucket: Bucket) -> None:
    for name, numbers in (("a/x.parquet", range(40)), ("b.parquet", range(40, 60))):
        images = [{"bytes": image(number), "path": f"{number}"} for number in numbers]
        columns = {"image": images, "label": [f"{number % 3}" for number in numbers], "n": list(numbers)}
        write(tmp_path / "data" / name, columns, row_group_size=15)
        bucket.put(f"data/{name}", (tmp_path / "data" / name).read_bytes())
    remote, url = Storage(bucket.options), f"{bucket.url}/data"
    for tail in ("", "/*.parquet", "/b.parquet", "/**/x.parquet"):
        here = source(f"{tmp_path}/data{tail}", keep=("n",))
        there = pickle.loads(pickle.dumps(source(url + tail, remote, keep=("n",))))
        refs, expected = list(there.refs()), list(here.refs())
        assert [(ref.key, ref.at, ref.columns) for ref in refs] == [
            (ref.key, ref.at, ref.columns) for ref in expected
        ]
        assert read(there, refs) == read(here, expected)
        assert truth_of(there) == truth_of(here)
        assert list(there.refs(after=refs[7])) == refs[8:]
    found = source(url, remote)
    refs = list(found.refs())
    bucket.put("data/b.parquet", b"another")
    results = read(found, refs)
    assert results[:40] == [image(number) for number in range(40)]
    assert {failure(one) for one in results[40:]} == {("read", "unreadable")}


# Bounds


def giant(path: Path, count: int, size: int) -> str:
    """Write one row group of ``count`` images, a few of them a page."""
    columns = {"image": [bytes([number % 251]) * size for number in range(count)], "n": list(range(count))}
    options = {"row_group_size": count, "data_page_size": size, "write_batch_size": 1}
    return write(path, columns, compression="none", use_dictionary=False, **options)


def test_a_giant_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    url = giant(tmp_path / "a.parquet", 60, 1_000_000)
    found = source(url)
    refs = list(found.refs())
    before = pa.total_allocated_bytes()
    held = 0
    for number, reader in enumerate(found.read(Shard(0, tuple(refs)))):
        assert reader() == bytes([number % 251]) * 1_000_000
        held = max(held, pa.total_allocated_bytes() - before)
    assert held < 20 << 20  # of 60 MB


def test_listing_leaves_the_images_alone(tmp_path: Path) -> None:
    url = giant(tmp_path / "a.parquet", 100, 100_000)
    spy = handle()
    found = source(url, Handled(spy), keep=("n",))
    assert len(list(found.refs())) == 100
    assert sum(spy.asked) < 2 << 20  # type: ignore[attr-defined]  # of 10 MB
    refs = list(source(url).refs())
    spy.asked.clear()  # type: ignore[attr-defined]
    readers = found.read(Shard(0, tuple(refs)))
    assert [next(readers)() for _ in range(3)] == [bytes([number]) * 100_000 for number in range(3)]
    readers.close()  # type: ignore[attr-defined]
    assert sum(spy.asked) < 9 << 20  # type: ignore[attr-defined]


# Real files


def test_cifar10_as_parquet(shared: Path) -> None:
    folder = shared / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip("no CIFAR-10 among the real images beside the checkout")
    found = source(str(folder / "test-*.parquet"), keep=("file",))
    refs: Sequence[ImageRef] = list(found.refs())
    assert len(refs) == 10_000
    assert found.truth_schema is not None
    assert [one.name for one in classes_of(found.truth_schema)] == (
        folder / "classes.txt"
    ).read_text().split()
    rows = pq.read_table(folder / "test-00001-of-00002.parquet").slice(1300, 1).to_pylist()
    assert read(found, [refs[6300]]) == [rows[0]["image"]]
    assert refs[6300].columns["file"] == rows[0]["file"]
    assert refs[6300].columns["label"] == classes_of(found.truth_schema)[rows[0]["label"]].name
