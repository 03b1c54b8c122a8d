from __future__ import annotations

import io
import pickle
import re
import shutil
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.sources.lists.rows import Csv
from cnnbatch.storage import Storage, unique
from cnnbatch.types import ImageRef, Shard
from tests.memory import peak_bytes
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import failure, fill, keys, listed, read, source

pytest_plugins = ("tests.s3",)


def test_a_text_list(tmp_path: Path, web: WebServer) -> None:
    web.answer = lambda method, path: Reply(body=b"web") if "sig=S" in path else Reply(403)
    fill(tmp_path, ["images/a.jpg", "b c.jpg"])
    url = listed(
        tmp_path,
        f"\ufeffimages/a.jpg\r\n\n  ./images/../b c.jpg  \n{tmp_path}/gone.jpg\n"
        f"{web.url()}/c.jpg?sig=S&id=1\nfoo://x/y\nfile://{tmp_path}/d%20e.jpg",
    )
    found = source(url)
    refs = list(found.refs())
    assert [ref.uri for ref in refs] == [
        f"{tmp_path}/images/a.jpg",
        f"{tmp_path}/b c.jpg",
        f"{tmp_path}/gone.jpg",
        f"{web.url()}/c.jpg?sig=S&id=1",
        "foo://x/y",
        f"{tmp_path}/d e.jpg",
    ]
    assert refs[3].key == f"{web.url()}/c.jpg?id=1"
    results = read(found, refs)
    assert results[:2] == [b"images/a.jpg", b"b c.jpg"]
    assert failure(results[2]) == ("read", "not_found")
    assert results[3] == b"web"
    assert failure(results[4]) == ("read", "unreadable")


def test_a_relative_path_does_not_leave_the_folder_of_its_list(tmp_path: Path) -> None:
    fill(tmp_path, ["secret.jpg", "lists/in.jpg"])
    url = listed(tmp_path / "lists", f"../secret.jpg\nin.jpg\nx/../../other.jpg\n{tmp_path}/secret.jpg\n")
    results = read(source(url))
    assert failure(results[0]) == ("read", "forbidden")
    assert results[1] == b"lists/in.jpg"
    assert failure(results[2]) == ("read", "forbidden")
    assert results[3] == b"secret.jpg"  # said in full, it is meant


def test_a_list_in_a_bucket(bucket: Bucket) -> None:
    bucket.put("photos/a.jpg", b"A")
    bucket.put("lists/b.jpg", b"B")
    bucket.put("lists/list.txt", f"{bucket.url}/photos/a.jpg\nb.jpg\n".encode())
    found = source(f"{bucket.url}/lists/list.txt", Storage(bucket.options))
    assert [ref.key for ref in found.refs()] == [f"{bucket.url}/photos/a.jpg", f"{bucket.url}/lists/b.jpg"]
    assert read(found) == [b"A", b"B"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_list(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["id", "Class", "url", "note"],
        ["1", "cat", "a.jpg", f'"two\nlines{delimiter}"'],
        ["2", "", "b.jpg", " 007 "],
    ]
    url = listed(tmp_path, "\n".join(delimiter.join(row) for row in rows) + "\n\n", ".csv")
    fill(tmp_path, ["a.jpg", "b.jpg"])
    found = source(url, key="id", label="Class", keep=("note",))
    refs = list(found.refs())
    assert [(ref.key, ref.uri) for ref in refs] == [("1", f"{tmp_path}/a.jpg"), ("2", f"{tmp_path}/b.jpg")]
    assert [dict(ref.columns) for ref in refs] == [
        {"note": f"two\nlines{delimiter}", "label": "cat"},
        {"note": "007", "label": None},
    ]
    assert found.columns == pa.schema([("note", pa.string()), ("label", pa.string())])
    assert found.truth_schema == pa.schema([("label", pa.string())])
    truth = found.truth(Shard(0, tuple(refs)))
    assert truth is not None
    assert truth.to_pydict() == {"label": ["cat", None]}
    assert list(found.refs(after=refs[0])) == refs[1:]
    assert read(found) == [b"a.jpg", b"b.jpg"]


CELLS = st.text(alphabet='xy5 ",;\t|\n', max_size=5)
PADDED = st.tuples(CELLS, st.booleans(), st.integers(0, 2), st.integers(0, 2))


@given(st.sampled_from(",;\t|"), st.lists(st.tuples(PADDED, PADDED, PADDED), max_size=3))
@settings(deadline=None)
def test_blanks_around_cells_are_not_theirs(delimiter: str, rows: list[Any]) -> None:
    """Cells are written by hand, in quotes or bare where they can be, with blanks around them."""
    text, expected = delimiter.join("abc") + "\n", [["a", "b", "c"]]
    for row in rows:
        written, meant = [], []
        for cell, bare, before, behind in row:
            quotes = not bare or cell.strip()[:1] in ("", '"') or delimiter in cell or "\n" in cell
            shown = '"' + cell.replace('"', '""') + '"' if quotes else cell
            written.append(" " * before + shown + " " * behind)
            meant.append(cell if quotes else cell.strip())
        text, expected = text + delimiter.join(written) + "\n", [*expected, meant]
    found = Csv(delimiter)._cells(io.BytesIO(text.encode()), "list.csv")
    assert [cells for _, cells in found] == expected


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_values_are_trimmed_as_names_are(suffix: str, tmp_path: Path) -> None:
    delimiter = "\t" if suffix == ".tsv" else ","
    rows = [
        ("file ", " label"),
        (" a.jpg ", " sea lion "),
        ('"b.jpg" ', ' "cat, black"'),
        ("c.jpg", '  5" disk'),
    ]
    url = listed(tmp_path, "\r\n".join(delimiter.join(row) for row in rows) + "\r\n   \r\n", suffix)
    found = source(url, label="label")
    refs = tuple(found.refs())
    assert [ref.uri for ref in refs] == [f"{tmp_path}/{name}.jpg" for name in "abc"]
    assert [ref.columns["label"] for ref in refs] == ["sea lion", "cat, black", '5" disk']


def test_a_parquet_list_of_one_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg"]}), tmp_path / "list.parquet")
    assert keys(str(tmp_path / "list.parquet")) == [f"{tmp_path}/a.jpg"]


def test_a_parquet_list(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image_path": [f"{number}.jpg" for number in range(10_000)],
            "number": pa.array(range(10_000), pa.int16()),
            "class": pa.array([number % 3 for number in range(10_000)]),
            "box": [{"x": number, "y": 0.5} for number in range(10_000)],
            "kind": pa.array(["a", "b"] * 5000).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet", row_group_size=3000)
    found = source(str(tmp_path / "list.parquet"), key="number", label="class", keep=("box", "kind"))
    refs = list(found.refs())
    assert refs[7] == ImageRef(
        "7", f"{tmp_path}/7.jpg", columns={"box": {"x": 7, "y": 0.5}, "kind": "b", "label": "1"}
    )
    assert found.columns == pa.schema(
        [("box", table.schema.field("box").type), ("kind", "string"), ("label", "string")]
    )
    assert list(found.refs(after=refs[8000])) == refs[8001:]
    again = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 5000
    assert list(islice(again.refs(), 3)) == refs[:3]


MISTAKES = [
    (".csv", "url,id\na.jpg,1\nb.jpg,1\n", {"key": "id"}, r"lines 2 and 3 have the same id '1'"),
    (".txt", "a.jpg\n\nb.jpg\n./a.jpg\n", {}, r"lines 1 and 4 have the same address .*input\.key"),
    (".csv", "url,id\na.jpg,1\nb.jpg,\n", {"key": "id"}, r"line 3: the key column 'id' is empty"),
    (
        ".csv",
        "url,klass\na.jpg,1\n",
        {"label": "class"},
        r"input\.label: .* no column 'class'; did you mean 'klass'",
    ),
    (".csv", "url,a,a\nx,1,2\n", {"keep": ("a",)}, r"input\.keep: .* two columns 'a'"),
    (".csv", "a,b,c\n1,2,3\n", {}, r"a column of addresses was expected.*a, b, c"),
    (".csv", "url,uri\na.jpg,1\n", {"keep": ("uri",)}, r"input\.keep: 'uri' is a column that every row has"),
    (".csv", "url,label,y\na.jpg,1,2\n", {"label": "y", "keep": ("label",)}, r"input\.keep: 'label'"),
    (".csv", "url,id\na.jpg,1\nb.jpg\n", {}, r"line 3: 2 cells were expected, got 1"),
    (".csv", 'url,id\na.jpg,"1\n', {}, r"mend the quotes"),
    (".csv", "", {}, r"a column of addresses was expected"),
    (".csv", "url\n", {}, r"holds no address"),
    (".txt", "\n\n", {}, r"holds no address"),
    (".txt", "a.jpg\n", {"label": "x"}, r"input\.label: .* plain list, without columns"),
    (".txt", "x" * (1 << 20) + "\n", {}, r"line 1: an address was expected"),
    (".parquet", "no parquet", {}, r"is no Parquet file"),
]


@pytest.mark.parametrize(("suffix", "text", "fields", "message"), MISTAKES)
def test_mistakes_in_a_list(
    suffix: str, text: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        keys(listed(tmp_path, text, suffix), **fields)
    assert re.search(message, str(error.value), re.DOTALL), error.value


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        keys(str(tmp_path / "none.csv"))
    (tmp_path / "latin.txt").write_bytes(b"a.jpg\n\xe9.jpg\n")
    with pytest.raises(UserError, match="line 2: UTF-8 was expected"):
        keys(str(tmp_path / "latin.txt"))
    url = listed(tmp_path, "a.jpg\nb.jpg\n")
    with pytest.raises(UserError, match="no longer holds"):
        list(source(url).refs(after=ImageRef("gone", "gone")))
    with pytest.raises(UserError, match="one list was expected"):
        source([url, url], format="list")


def test_cells_without_an_address_are_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a.jpg", None, ""]}), tmp_path / "list.parquet")
    fill(tmp_path, ["a.jpg"])
    found = source(str(tmp_path / "list.parquet"))
    assert [ref.key for ref in found.refs()] == [f"{tmp_path}/a.jpg", "list.parquet#1", "list.parquet#2"]
    assert [failure(result) for result in read(found)[1:]] == [("read", "unreadable")] * 2


def test_the_column_of_addresses_is_found(tmp_path: Path) -> None:
    for header, cells in (("URL,x", "a.jpg,1"), ("x,FileName", "1,a.jpg"), ("x,photo", "1,a.jpg")):
        url = listed(tmp_path, f"{header}\n{cells}\n", ".csv")
        assert [ref.uri for ref in source(url, key="x").refs()] == [f"{tmp_path}/a.jpg"]


def test_a_list_in_memory_without_its_suffix() -> None:
    storage, url = Storage(), f"memory://{uuid.uuid4().hex}/names"
    storage.put(url, b"a.jpg\n")
    assert keys(url, storage, format="list") == [url.replace("names", "a.jpg")]


def test_a_list_whose_images_are_not_mounted_here(tmp_path: Path) -> None:
    fill(tmp_path, ["mnt/x/a.jpg", "mnt/y/b.jpg"])
    url = listed(tmp_path, "mnt/x/a.jpg\nmnt/y/b.jpg\nmnt/z/never.jpg\n")
    found = source(url)
    refs = list(found.refs())
    assert [ref.etag is None for ref in refs] == [False, False, True]
    shutil.rmtree(tmp_path / "mnt/x")
    results = read(found, refs)
    assert failure(results[0]) == ("read", "not_found")
    assert failure(results[2]) == ("read", "not_found")
    shutil.rmtree(tmp_path / "mnt/y")
    with pytest.raises(EnvironmentFault, match="missing or empty"):
        read(found, refs[:1])
    assert failure(read(found, refs[2:])[0]) == ("read", "not_found")  # nobody ever saw it


# Unique keys


@given(
    st.lists(st.text(max_size=3), max_size=60), st.integers(0, 20), st.sampled_from([24, 24 * 3, 24 * 512])
)
def test_the_first_key_that_comes_twice_is_found(found: list[str], early: int, buffer: int) -> None:
    seen: dict[str, int] = {}
    expected = None
    for place, key in enumerate(found):
        if key in seen and expected is None:
            expected = (seen[key], place)
        seen.setdefault(key, place)
    with pytest.MonkeyPatch.context() as patch, unique.unique_keys() as checked:
        patch.setattr(unique, "_EARLY", early)
        patch.setattr(unique, "_BUFFER", buffer)
        at_once = [pair for place, key in enumerate(found) if (pair := checked.add(key, place))]
        if at_once:
            assert expected is not None
            assert at_once[0][1] >= expected[1]
        else:
            assert checked.duplicate() == expected


@pytest.mark.slow
def test_keys_are_checked_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique, "_EARLY", 1000)
    monkeypatch.setattr(unique, "_BUFFER", 24 * 16)

    def check() -> None:
        with unique.unique_keys() as checked:
            for number in range(100_000):
                checked.add(f"key-{number}", number)
            checked.add("key-51234", 100_000)
            assert checked.duplicate() == (51234, 100_000)

    assert peak_bytes(check, 2 << 20) < 2 << 20
