from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.sources import containers
from cnnbatch.sources.files.left_out import left_out_by
from cnnbatch.sources.tar.members import members
from cnnbatch.sources.tar.source import Tar
from cnnbatch.storage import Storage, unique
from cnnbatch.truth import LABEL_SCHEMA, OBJECTS_SCHEMA
from cnnbatch.types import Failure, ImageRef, Shard, Source, Span
from tests.memory import peak_bytes
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import QUICK, failure, keys, read, source

pytest_plugins = ("tests.s3",)

Files = Iterable[tuple[str, bytes]]


def packed(files: Files, form: int = tarfile.PAX_FORMAT, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), 1) if compressed else buffer.getvalue()


def write(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(files, form, path.suffix != ".tar"))
    return str(path)


def truth_of(found: Source) -> list[dict[str, Any]]:
    refs = tuple(found.refs())
    (shard,) = page_shards(page_table([Shard(0, refs)], found.columns))  # as a worker gets it, by the plan
    truth = found.truth(shard)
    assert truth is not None
    return [{name: value for name, value in row.items() if value is not None} for row in truth.to_pylist()]


class Counting(Storage):
    """Notes the bytes that each read asks for."""

    def __init__(self) -> None:
        super().__init__(QUICK)
        self.asked: list[int] = []

    def read(self, uri: str, span: Span | None = None, limit: int | None = None) -> bytes:
        self.asked.append(span.length if span else -1)
        return super().read(uri, span, limit)


# What is in an archive


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_an_archive_of_images(name: str, tmp_path: Path) -> None:
    files = [
        ("notes.txt", b"no image"),
        ("b/2.JPG", b"two"),
        ("b/1.png", b"one" * 1000),
        (".hidden.jpg", b"no"),
        ("b/._1.png", b"no"),
        ("./c.d/x.gif", b""),
        ("b/3.jpg.bak", b"no"),
    ]
    found = source(write(tmp_path / name, files))
    assert isinstance(found, Tar)
    refs = list(found.refs())
    assert [ref.key for ref in refs] == ["b/2.JPG", "b/1.png", "./c.d/x.gif"]
    assert {(ref.uri, bool(ref.etag)) for ref in refs} == {(f"{tmp_path}/{name}", True)}
    assert read(found) == [b"two", b"one" * 1000, b""]
    assert (found.columns, found.truth_schema) == (pa.schema([]), None)
    assert found.truth(Shard(0, tuple(refs))) is None
    again = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 2000
    assert read(again, refs[1:]) == [b"one" * 1000, b""]


def test_several_archives(tmp_path: Path) -> None:
    write(tmp_path / "x/b.tar", [("1.jpg", b"b1"), ("2.jpg", b"b2")])
    write(tmp_path / "a.tgz", [("1.jpg", b"a1"), ("2.jpg", b"a2")])
    write(tmp_path / "c.tar", [("1.jpg", b"c1")])
    (tmp_path / "index.txt").write_text("no archive")
    found = source(str(tmp_path))
    refs = list(found.refs())
    assert [ref.key for ref in refs] == [
        "a.tgz/1.jpg",
        "a.tgz/2.jpg",
        "c.tar/1.jpg",
        "x/b.tar/1.jpg",
        "x/b.tar/2.jpg",
    ]
    assert read(found) == [b"a1", b"a2", b"c1", b"b1", b"b2"]
    for number, ref in enumerate(refs):
        assert list(found.refs(after=ref)) == refs[number + 1 :]
    assert read(found, refs[::-1]) == [b"b2", b"b1", b"c1", b"a2", b"a1"]
    write(tmp_path.with_name("other.tar"), small(1))
    with pytest.raises(UserError, match=r"the listing goes on in .*other\.tar, but"):
        list(found.refs(after=ImageRef("other.tar/0.jpg", f"{tmp_path.parent}/other.tar", Span(512, 700))))
    assert keys(f"{tmp_path}/*.tar") == ["c.tar/1.jpg"]  # one more may match in the next listing
    with pytest.raises(UserError, match="no longer holds 'gone'"):
        list(found.refs(after=replace(refs[0], key="gone")))
    (tmp_path / "photo.jpg").write_bytes(b"beside them")
    assert keys(str(tmp_path)) == ["photo.jpg"]
    with pytest.raises(UserError, match=r"a\.tar: expected images, found none"):
        keys(write(tmp_path / "a.tar", [("a.txt", b"x")]))
    with pytest.raises(
        UserError, match=r"expected tar archives \(\.tar, \.tar\.gz, \.tgz\) below .* found none"
    ):
        keys(str(tmp_path / "nowhere"), format="tar")


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_an_archive_of_a_web_server(name: str, web: WebServer) -> None:
    data = packed(small(3), compressed=name == "a.tgz")
    web.answer = lambda method, path: Reply(body=data) if path == f"/{name}?sig=S" else Reply(404)
    found = source(f"{web.url()}/{name}?sig=S")
    assert [ref.key for ref in found.refs()] == ["0.jpg", "1.jpg", "2.jpg"]
    assert read(found) == [one for _, one in small(3)]


def test_what_belongs_to_a_sample(tmp_path: Path) -> None:
    files = [
        ("0/1.jpg", b"A"),
        ("0/1.seg.png", b"mask"),
        ("0/1.cls", b"3\n"),
        ("0/2.cls", b"cat"),
        ("0/2.left.png", b"B"),
        ("0/2.right.png", b"C"),
        ("0/3.png", b"D"),
        ("0/3.cls", b""),
        ("0/4.webp", b"E"),
    ]
    found = source(write(tmp_path / "a.tar", files))
    assert [ref.key for ref in found.refs()] == [
        "0/1.jpg",
        "0/2.left.png",
        "0/2.right.png",
        "0/3.png",
        "0/4.webp",
    ]
    assert found.truth_schema is not None
    assert found.truth_schema.equals(LABEL_SCHEMA)
    assert [row.get("label") for row in truth_of(found)] == ["3", "cat", "cat", None, None]
    assert truth_of(found)[0]["image_id"] == "0/1.jpg"
    by_key = source(str(tmp_path / "a.tar"), label=r"0/(\d)")
    assert [row["label"] for row in truth_of(by_key)] == ["1", "2", "2", "3", "4"]


def test_columns_and_truth_from_json(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [
        {"n": None, "w": 1.5, "t": "x", "ok": True, "tags": ["a", 1], "label": 4, "width": 7, "height": 8},
        {"n": 5, "w": 2, "t": None, "ok": False, "tags": None, "label": "dog"},
        {},
    ]
    files = [
        (f"{number}.{kind}", data)
        for number, one in enumerate(samples)
        for kind, data in (("json", json.dumps(one).encode()), ("jpg", b"A"))
    ]
    url = write(tmp_path / "a.tar.gz", [*files, ("3.jpg", b"B")])
    found = source(url, keep=("n", "w", "t", "ok", "tags", "label"))
    types = [pa.int64(), pa.float64(), pa.string(), pa.bool_(), pa.string(), pa.string()]
    names = ["n", "w", "t", "ok", "tags", "label"]
    assert found.columns == pa.schema([pa.field(*pair) for pair in zip(names, types, strict=True)])
    kept = [dict(ref.columns) for ref in found.refs()]
    assert kept[0] == {"n": None, "w": 1.5, "t": "x", "ok": True, "tags": '["a",1]', "label": "4"}
    assert kept[1] == {"n": 5, "w": 2.0, "t": None, "ok": False, "tags": None, "label": "dog"}
    assert kept[3] == dict.fromkeys(kept[0])
    assert [row.get("label") for row in truth_of(found)] == ["4", "dog", None, None]


BOX = {"x1": 1.0, "y1": 2.0, "x2": 4.0, "y2": 6.0}


def test_objects_from_json(tmp_path: Path) -> None:
    samples: list[Any] = [
        {"objects": [], "label": "is not the truth"},
        {"objects": [{"label": "dog", "box": BOX, "difficult": True}], "width": 10, "height": 20},
        {"objects": [{"category": 3, "bbox": [1, 2, 3, 4]}]},
        {"objects": {"category": ["cat"], "bbox": [[1, 2, 3, 4]], "area": [2], "iscrowd": [1]}},
        {"objects": None},
    ]
    files = [
        (f"{number}.{kind}", data)
        for number, one in enumerate(samples)
        for kind, data in (("jpg", b"A"), ("json", json.dumps(one).encode()))
    ]
    found = source(write(tmp_path / "a.tar", files))
    assert found.truth_schema is not None
    assert found.truth_schema.equals(OBJECTS_SCHEMA)
    rows = truth_of(found)
    shown = [
        [{name: value for name, value in one.items() if value is not None} for one in row.get("objects", [])]
        for row in rows
    ]
    coco = {"box": BOX, "crowd": False, "area": 12.0, "ignore": False}
    assert shown == [
        [],
        [{"label": "dog", "box": BOX, "difficult": True}],
        [{"label": "3", **coco}],
        [{"label": "cat", **coco, "crowd": True, "area": 2.0}],
        [],
    ]
    assert (rows[1]["width"], rows[1]["height"]) == (10, 20)
    assert "objects" in rows[0]
    assert "objects" not in rows[4]


def pair(number: int, text: str, kind: str = "json") -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", b"A"), (f"{number}.{kind}", text.encode("latin1"))]


MISTAKES: list[tuple[Files, dict[str, Any], str]] = [
    (
        [*pair(0, '{"n": 1}'), *pair(1, '{"n": 1.5}')],
        {"keep": ("n",)},
        r"'1\.json': column 'n': a whole number was",
    ),
    (
        [*pair(0, '{"n": 1}'), *pair(1, '{"n": true}')],
        {"keep": ("n",)},
        r"expected as in the first sample, got True",
    ),
    ([*pair(0, '{"n": 1}'), *pair(1, f'{{"n": {2**63}}}')], {"keep": ("n",)}, r"a whole number was expected"),
    (
        [*pair(0, '{"n": "x"}'), *pair(1, '{"n": 3}')],
        {"keep": ("n",)},
        r"'1\.json': column 'n': text was expected",
    ),
    (
        pair(0, '{"klass": 1}'),
        {"keep": ("class",)},
        r"has no 'class'; did you mean 'klass'.*its columns: klass",
    ),
    (pair(0, '{"width": 1}'), {"keep": ("width",)}, r"'width' is a column that every row"),
    (pair(0, "[1]"), {}, r"a\.tar, '0\.json': an object \{\.\.\.\} was expected, got \[1\]"),
    (pair(0, '{"n": '), {}, r"'0\.json': is not whole JSON"),
    (pair(0, '{"a":' * 50_000), {}, r"'0\.json': is not whole JSON"),
    (
        [*pair(0, '{"label": 1}'), *pair(1, '{"label": [1]}')],
        {},
        r"'1\.json': expected a class as text or number",
    ),
    ([*pair(0, '{"objects": []}'), *pair(1, '{"objects": 3}')], {}, r"'1\.json': expected a list of \{label"),
    (
        [*pair(0, '{"objects": []}'), *pair(1, '{"objects": [{"label": "x", "bbox": [NaN,1,1,1]}]}')],
        {},
        r"the bbox",
    ),
    (pair(0, "\xe9", "cls"), {}, r"'0\.cls': a class as text in UTF-8 was expected"),
    (pair(0, "x" * 5000, "cls"), {}, r"'0\.cls' has 5,000 bytes, at most 4,096 were expected"),
    (
        [("0.jpg", b"A"), ("1.jpg", b"B"), ("0.cls", b"x")],
        {},
        r"'0\.cls': an image of its name was expected beside",
    ),
    ([("0.jpg", b"A")] * 2, {}, r"a\.tar: the headers at bytes 0 and 1,024 have the same name '0\.jpg'"),
    (
        [("0.jpg", b"A"), ("1.jpg", b"B"), ("0.jpg", b"C")],
        {},
        r"bytes 0 and 2,048 have the same name '0\.jpg'",
    ),
    ([("\udcff.jpg", b"A")], {}, r"the name of a member must be UTF-8"),
    ([], {}, r"expected images, found none"),
]


@pytest.mark.parametrize(("files", "fields", "message"), MISTAKES)
def test_mistakes(files: Files, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        keys(write(tmp_path / "a.tar", files, tarfile.GNU_FORMAT), **fields)
    assert re.search(message, str(error.value), re.DOTALL), error.value


def test_a_member_that_comes_twice_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique, "_EARLY", 0)
    files = [(f"{number % 50}.jpg", b"A") for number in range(51)]
    with pytest.raises(UserError, match=r"bytes 0 and 51,200 have the same name '0\.jpg'"):
        keys(write(tmp_path / "a.tar", files))


def test_names_are_keys_and_never_paths(tmp_path: Path) -> None:
    names = [
        "/etc/passwd.jpg",
        "../../up.jpg",
        "a/../b.jpg",
        "C:\\x.jpg",
        "ключ/é.jpg",
        "n\nl.jpg",
        "x" * 300 + ".png",
    ]
    url = write(tmp_path / "in/a.tar", [(name, name.encode()) for name in names])
    before = sorted(tmp_path.rglob("*"))
    assert keys(url) == names
    assert read(source(url)) == [name.encode() for name in names]
    assert sorted(tmp_path.rglob("*")) == before


def special(kind: bytes, name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            special(tarfile.SYMTYPE, "b.jpg", linkname="a.jpg"),
            "'b.jpg': an image was expected, it is a link to a.jpg",
        ),
        (special(tarfile.LNKTYPE, "b.jpg", linkname="a.jpg"), "--hard-dereference"),
        (special(tarfile.FIFOTYPE, "b.jpg"), "it is no file"),
        (special(tarfile.DIRTYPE, "b.jpg"), None),
        (special(tarfile.SYMTYPE, "b.txt", linkname="a.jpg"), None),
        (special(tarfile.CHRTYPE, "null"), None),
    ],
)
def test_members_that_are_no_files(member: tarfile.TarInfo, message: str | None, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"A"))
        tar.addfile(member)
    if message is None:
        assert keys(str(tmp_path / "a.tar")) == ["a.jpg"]
    else:
        with pytest.raises(UserError, match=message):
            keys(str(tmp_path / "a.tar"))


def test_a_sparse_image_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "s.jpg", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    if os.stat(tmp_path / "s.jpg").st_blocks * 512 >= 1 << 20 or shutil.which("tar") is None:
        pytest.skip("this file system has no sparse files, or there is no tar")
    for form in ("gnu", "posix"):
        url = f"{tmp_path}/{form}.tar"
        assert os.system(f"cd {tmp_path} && tar --sparse --format={form} -cf {url} s.jpg") == 0
        with pytest.raises(UserError, match=r"'s\.jpg': an image was expected, it is a sparse file"):
            keys(url)


# Damage


def small(count: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", bytes([number]) * (size + number)) for number in range(count)]


def listed(url: str) -> tuple[list[str], str]:
    """Return the keys that a listing gives, and what it says at its end."""
    found: list[str] = []
    try:
        for ref in source(url, format="tar").refs():
            found.append(ref.key)
    except UserError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_an_archive_that_is_cut_gives_what_is_whole_and_says_so(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    url = write(path, small(25, 600))  # each takes 512 + 1,024 bytes
    whole = packed(small(25, 600))
    end = 25 * 1536
    for length in (
        0,
        100,
        512,
        1535,
        *range(22 * 1536, end + 1536, 256),
        35_000,
        end - 1,
        end + 1,
        end + 512,
    ):
        path.write_bytes(whole[:length] if suffix == ".tar" else gzip.compress(whole[:length]))
        found, said = listed(url)
        whole_ones = sum(number * 1536 + 512 + 600 + number <= length for number in range(25))
        # The last one may lack its label or more; and of the first twenty the opening tells.
        count = 25 if length >= end + 512 else max(0, whole_ones - 1)
        assert found == ([f"{number}.jpg" for number in range(count)] if count >= 20 else []), length
        assert bool(said) == (length < end + 512), (length, said)


def test_the_message_of_a_cut_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    url = write(path, small(30, 3000))
    data = path.read_bytes()
    path.write_bytes(data[:100_000])
    with pytest.raises(
        UserError, match=r"a\.tar ends in the middle of '27\.jpg', after 100,000 bytes; expected 1"
    ):
        keys(url)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        end = tar.getmembers()[28].offset
    path.write_bytes(data[:end])
    with pytest.raises(
        UserError, match=r"a\.tar ends behind '27\.jpg' without the zeros .*\n.*head -c 1024 /dev/zero"
    ):
        keys(url)
    path.write_bytes(data[:end] + b"garbage!" * 200)
    with pytest.raises(UserError, match=rf"a\.tar has no header at byte {end:,}, behind '27\.jpg'"):
        keys(url)
    (tmp_path / "b.tgz").write_bytes(gzip.compress(data)[:-400])
    with pytest.raises(UserError, match=r"b\.tgz (ends in the middle of|is no whole tar)"):
        keys(f"{tmp_path}/b.tgz")
    path.write_bytes(b"no tar at all" * 1000)
    with pytest.raises(UserError, match=r"a\.tar is no whole tar"):
        keys(url)


def test_a_header_is_not_read_whatever_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(special(tarfile.XHDTYPE, "x", size=200 << 20).tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 300 << 20)

    def listed() -> None:
        with pytest.raises(UserError, match=r"a\.tar is no whole tar: a header of 209,715,200 bytes"):
            keys(str(path))

    assert peak_bytes(listed, 20 << 20) < 20 << 20


def test_the_members_of_an_archive_are_not_kept(tmp_path: Path) -> None:
    storage, url = (
        Storage(QUICK),
        write(tmp_path / "a.tar", [(f"{number}.jpg", b"") for number in range(3000)]),
    )
    entry = storage.head(url)

    def listed() -> None:
        assert sum(1 for _ in members(storage, entry, lambda name: 0)) == 3000

    assert peak_bytes(listed, 500_000) < 500_000


def test_a_header_that_claims_anything(tmp_path: Path) -> None:
    huge = special(tarfile.XHDTYPE, "x", size=1 << 40).tobuf(tarfile.GNU_FORMAT)
    negative = bytearray(special(tarfile.REGTYPE, "a.jpg", size=1).tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 10 + b"\xfc\x00"
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:]))
    longname = special(tarfile.GNUTYPE_LONGNAME, "x", size=70_000).tobuf(tarfile.GNU_FORMAT)
    for number, head in enumerate((huge, bytes(negative), longname, huge[:300])):
        (tmp_path / f"{number}.tar").write_bytes(head + bytes(200_000))
        with pytest.raises(UserError, match=rf"{number}\.tar (is no whole tar|the header|has no header)"):
            keys(f"{tmp_path}/{number}.tar")


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_told_or_harmless(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    files = [("a" * 90 + "/é.jpg", b"A" * 600), ("b.json", b'{"x": 1}'), ("b.jpg", b"B"), ("c.jpg", b"")]
    compressed = data.draw(st.booleans())
    raw = bytearray(packed(files, form if form != tarfile.USTAR_FORMAT else tarfile.PAX_FORMAT, compressed))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, min(len(raw), 6000) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tgz" if compressed else "a.tar")
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
        with suppress(UserError):
            found = source(str(path))
            assert all(isinstance(one, bytes | Failure) for one in read(found))


def test_archives_that_change_or_vanish(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("a.tar", "b.tar", "c.tgz", "d.tgz", "e.tar"):
        write(folder / name, small(2))
    found = source(str(folder))
    refs = list(found.refs())
    (folder / "b.tar").unlink()
    (folder / "d.tgz").unlink()
    for name in ("a.tar", "c.tgz"):
        write(folder / name, [("another.jpg", b"B"), *small(2)])
    results = read(found, refs)
    expected = [("read", "unreadable"), ("read", "not_found")] * 2
    assert [failure(one) for one in results[:8:2]] == expected
    assert [failure(one) for one in results[1:8:2]] == expected
    assert results[8:] == [data for _, data in small(2)]
    shutil.rmtree(folder)
    with pytest.raises(EnvironmentFault, match="missing or empty"):
        read(found, refs)


def test_an_archive_cut_behind_its_listing(tmp_path: Path) -> None:
    found = source(write(tmp_path / "a.tar", small(4)))
    refs = [replace(ref, etag=None) for ref in found.refs()]
    os.truncate(tmp_path / "a.tar", 2 * 1536 + 600)
    results = read(found, refs)
    assert results[:2] == [data for _, data in small(2)]
    assert [failure(one) for one in results[2:]] == [("read", "unreadable")] * 2


def test_a_compressed_archive_damaged_behind_its_listing(tmp_path: Path) -> None:
    generator = random.Random(0)
    files = [(f"{number}.jpg", generator.randbytes(20_000)) for number in range(20)]
    path = tmp_path / "a.tgz"
    found = source(write(path, files))
    refs = [replace(ref, etag=None) for ref in found.refs()]
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    results = read(found, refs)
    good = [one for one in results if isinstance(one, bytes)]
    assert 5 < len(good) < 11
    assert good == [one for _, one in files[: len(good)]]
    assert {failure(one) for one in results[len(good) :]} == {("read", "unreadable")}


# Addresses

stem = st.builds(
    lambda text, times: f"{text * times}x", st.text("aé/-_ ", min_size=1, max_size=9), st.integers(1, 15)
)
member = st.tuples(stem, st.sampled_from([".jpg", ".PNG", ".cls", ".txt", ""]), st.integers(0, 3000))


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.lists(member, max_size=12), min_size=1, max_size=3), st.data())
def test_any_image_is_found_and_any_listing_resumed(archives: Sequence[Any], data: st.DataObject) -> None:
    expected: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(containers, "RANGE_BYTES", data.draw(st.sampled_from([1, 3000, 4 << 20])))
        patch.setattr(containers, "_GAP_BYTES", data.draw(st.sampled_from([0, 1024, 512 << 10])))
        if data.draw(st.booleans()):  # As in a bucket, by windows.
            patch.setattr("cnnbatch.sources.tar.members.is_local", lambda uri: False)
            window = data.draw(st.sampled_from([300, 700, 16 << 10]))
            patch.setattr("cnnbatch.sources.tar.members._LARGEST_WINDOW", window)
        for number, listed_members in enumerate(archives):
            name = f"{number}{data.draw(st.sampled_from(['.tar', '.tgz']))}"
            # A sample's own names, so that labels stay beside their image and nothing comes twice.
            files = []
            for place, (base, suffix, size) in enumerate(listed_members):
                image, content = f"{base}{place}{suffix}", bytes([place + 1]) * size
                files.append((image, content if suffix != ".cls" else b"x"))
                if suffix == ".cls":
                    files.append((f"{base}{place}.jpg", content))
                if suffix not in (".txt", ""):
                    expected[f"{name}/{base}{place}{suffix.replace('.cls', '.jpg')}"] = content
            form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
            write(Path(folder, name), files, form)
        found = source(folder, format="tar")
        if not expected:
            with pytest.raises(UserError, match="found none"):
                list(found.refs())
            return
        refs = list(found.refs())
        assert [ref.key for ref in refs] == list(expected)
        chosen = data.draw(st.lists(st.sampled_from(range(len(refs))), unique=True).map(sorted))
        assert read(found, [refs[n] for n in chosen]) == [list(expected.values())[n] for n in chosen]
        behind = data.draw(st.integers(0, len(refs) - 1))
        assert list(found.refs(after=refs[behind])) == refs[behind + 1 :]


def test_a_bucket_gives_what_the_folder_gives(tmp_path: Path, bucket: Bucket) -> None:
    files = [
        (f"{number}.{kind}", data)
        for number in range(40)
        for kind, data in (("jpg", b"%d" % number * 9000), ("cls", b"%d" % (number % 3)))
    ]
    for name in ("a.tar", "x/b.tar.gz"):
        write(tmp_path / "data" / name, files)
        bucket.put(f"data/{name}", (tmp_path / "data" / name).read_bytes())
    remote = Storage(bucket.options)
    for tail in ("", "/*.tar", "/a.tar", "/x/b.tar.gz"):
        here = source(f"{tmp_path}/data{tail}")
        there = pickle.loads(pickle.dumps(source(f"{bucket.url}/data{tail}", remote)))
        refs, expected = list(there.refs()), list(here.refs())
        assert [(one.key, one.at, one.columns) for one in refs] == [
            (one.key, one.at, one.columns) for one in expected
        ]
        assert read(there, refs) == read(here, expected)
        assert truth_of(there) == truth_of(here)
        assert list(there.refs(after=refs[7])) == refs[8:]
        assert read(there, refs[5:40:7]) == read(here, expected[5:40:7])
    found = source(f"{bucket.url}/data/a.tar", remote)
    refs = list(found.refs())
    bucket.put("data/a.tar", packed(files[2:]))
    assert {failure(one) for one in read(found, refs)} == {("read", "unreadable")}


# Bounds


def test_large_members_are_stepped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(tmp_path / "a.tar", [(f"{number}.jpg", b"A" * 3_000_000) for number in range(8)])
    monkeypatch.setattr("cnnbatch.sources.tar.members.is_local", lambda uri: False)  # as in a bucket
    storage = Counting()
    assert len(keys(url, storage)) == 8
    assert 0 < sum(storage.asked) < 1_500_000  # of 24 million


def test_small_members_cost_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.sources.tar.members.is_local", lambda uri: False)
    files = [(f"{number}.{kind}", b"1" * 5000) for number in range(2000) for kind in ("jpg", "txt")]
    url = write(tmp_path / "a.tar", files)  # 24 MB
    storage = Counting()
    found = source(url, storage)
    refs = list(found.refs())
    assert len(storage.asked) < 30
    storage.asked.clear()
    assert read(found, refs) == [b"1" * 5000] * 2000
    assert len(storage.asked) == 6
    assert max(storage.asked) <= 4 << 20
    storage.asked.clear()
    assert read(found, [refs[0], refs[1], refs[1000], refs[1999]]) == [b"1" * 5000] * 4
    assert sum(storage.asked) < 50_000
    storage.asked.clear()
    assert read(found, [refs[0], refs[100]]) == [b"1" * 5000] * 2
    assert sum(storage.asked) == 10_000  # what lies between them costs more than another request
    large = source(write(tmp_path / "b.tar", [("a.jpg", b"A" * 6_000_000), ("b.jpg", b"B")]), storage)
    refs = list(large.refs())
    storage.asked.clear()
    assert read(large, refs) == [b"A" * 6_000_000, b"B"]
    assert sorted(storage.asked) == [1, 6_000_000]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
def test_an_archive_is_never_held_whole(suffix: str, tmp_path: Path) -> None:
    url = write(tmp_path / f"a{suffix}", [(f"{number}.jpg", bytes(60_000)) for number in range(1000)])

    def read_all() -> None:
        found = source(url)
        refs = tuple(found.refs())
        assert all(reader() == bytes(60_000) for reader in found.read(Shard(0, refs)))

    assert peak_bytes(read_all, 40 << 20) < 40 << 20  # of 60 MB: five ranges and their images


def test_an_image_over_the_limit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "RANGE_BYTES", 500)
    for module in ("containers", "tar.source"):
        monkeypatch.setattr(f"cnnbatch.sources.{module}.MAX_BYTES", 1000)
    for suffix in (".tar", ".tgz"):
        results = read(source(write(tmp_path / f"a{suffix}", [("a.jpg", b"A" * 1001), ("b.jpg", b"B")])))
        assert failure(results[0]) == ("read", "too_large")
        assert results[1] == b"B"


def test_a_listing_left_behind_a_ref_of_another_input(tmp_path: Path) -> None:
    found = source(write(tmp_path / "a.tar", small(2)))
    write(tmp_path / "b.tar", small(2))
    for name in ("b.tar", "none.tar"):
        with pytest.raises(
            UserError, match=rf"the listing goes on in .*{name}, but .*a\.tar does not name it"
        ):
            list(found.refs(after=ImageRef("x", f"{tmp_path}/{name}", Span(0, 1))))


# Archives one behind the other, and headers that claim anything


def test_archives_one_behind_the_other(tmp_path: Path) -> None:
    first, second = packed([("0.jpg", b"A"), ("0.cls", b"x")]), packed([("1.jpg", b"B"), ("1.cls", b"y")])
    for name, data in (
        ("a.tar", first + second),
        ("zeros.tar", first + bytes(1 << 20) + second + bytes(512 * 77)),
        ("a.tgz", gzip.compress(first) + gzip.compress(second)),
    ):
        (tmp_path / name).write_bytes(data)
        found = source(str(tmp_path / name))
        refs = list(found.refs())
        assert [ref.key for ref in refs] == ["0.jpg", "1.jpg"]
        assert [row["label"] for row in truth_of(found)] == ["x", "y"]
        assert read(found) == [b"A", b"B"]
        assert list(found.refs(after=refs[0])) == refs[1:]
    (tmp_path / "a.tar").write_bytes(first + first)
    with pytest.raises(UserError, match=r"headers at bytes 0 and 10,240 have the same name '0\.jpg'"):
        keys(str(tmp_path / "a.tar"))
    for rest in (b"signature", b"x" * 700, second[700:]):
        (tmp_path / "a.tar").write_bytes(first + rest)
        with pytest.raises(UserError, match=r"goes on at byte 10,240, .*\n.*truncate -s 10240"):
            keys(str(tmp_path / "a.tar"))


def test_many_compressed_archives_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes: list[int] = []

    class Counted(gzip.GzipFile):
        def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
            if whence == io.SEEK_SET:
                assert offset >= self.tell()  # back is from the beginning again
            return super().seek(offset, whence)

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            read_bytes.append(len(data))
            return data

    whole = b"".join(packed([(f"{number}.jpg", bytes(700))]) for number in range(100))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(whole))
    monkeypatch.setattr("cnnbatch.sources.tar.members.gzip.GzipFile", Counted)
    assert len(keys(str(tmp_path / "a.tgz"))) == 100
    assert sum(read_bytes) < 2.5 * len(whole)  # the first few samples are looked at before


def base_plus_ext(path: str) -> tuple[str, str] | None:
    """Return key and extension as WebDataset does (webdataset/tariterators.py)."""
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", path)
    return (match[1], match[2].lower()) if match else None


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """Companions too, as in a folder; a listing that goes on counts what is still to come."""
    files = [
        ("a.jpg", b"A"), ("a.seg.png", b"S"), ("a.json", b"{}"), ("a.txt", b"caption"),
        (".hidden.jpg", b"H"), ("b.CR2", b"R"), ("b.jpg", b"B"), ("c.nef", b"N"),
        ("d.json", b"{}"), ("readme", b"R"),
    ]  # fmt: skip
    found = source(write(tmp_path / "a.tar", files))
    refs = list(found.refs())
    assert [ref.key for ref in refs] == ["a.jpg", "b.jpg", "c.nef"]
    behind = {"raw beside a JPEG of its name": 1, ".json": 1, "without suffix": 1}
    assert left_out_by(found) == {".png": 1, ".txt": 1, "hidden": 1, **behind}
    again = source(str(tmp_path / "a.tar"))
    assert [ref.key for ref in again.refs(refs[1])] == ["c.nef"]
    assert left_out_by(again) == {".json": 1, "without suffix": 1}


def test_names_with_dots(tmp_path: Path) -> None:
    files = [
        ("a.b/photo_v1.0.jpg", b"A"),
        ("a.b/photo_v1.0.cls", b"cat"),
        ("a.b/photo_v1.1.JPG", b"B"),
        ("a.b/photo_v1.1.cls", b"dog"),
        ("a.b/photo_v1.2.jpg", b"C"),
        ("a.b/photo_v1.cls", b"one of them"),
        ("pair.left.jpg", b"D"),
        ("pair.right.png", b"E"),
        ("pair.cls", b"both"),
        ("plain.cls", b"plain"),
        ("plain.jpg", b"F"),
    ]
    found = source(write(tmp_path / "a.tar", files))
    labels = {row["image_id"]: row["label"] for row in truth_of(found)}
    assert labels == {
        "a.b/photo_v1.0.jpg": "cat",
        "a.b/photo_v1.1.JPG": "dog",
        "a.b/photo_v1.2.jpg": "one of them",
        "pair.left.jpg": "both",
        "pair.right.png": "both",
        "plain.jpg": "plain",
    }
    by_rule: dict[str, set[str]] = {}
    for name, data in files:
        split = base_plus_ext(name)
        assert split is not None
        if split[1] == "cls":
            by_rule.setdefault(split[0], set()).add(data.decode())
    for name in ("pair.left.jpg", "plain.jpg"):  # where the rule finds one class, it is the image's
        split = base_plus_ext(name)
        assert split is not None
        assert {labels[name]} == by_rule[split[0]]
    documents = [
        ("v1.0.jpg", b"A"),
        ("v1.0.json", b'{"label": "cat", "n": 1}'),
        ("v1.1.jpg", b"B"),
        ("v1.1.json", b'{"label": "dog", "n": 2}'),
    ]
    found = source(write(tmp_path / "b.tar", documents), keep=("n",))
    assert [dict(ref.columns) for ref in found.refs()] == [{"n": 1, "label": "cat"}, {"n": 2, "label": "dog"}]
    with pytest.raises(UserError, match=r"'v1\.0\.cls': an image of its name was expected"):
        keys(write(tmp_path / "c.tar", [("v1.0.cls", b"x"), ("w.jpg", b"A")]))


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def attributes(**fields: str) -> bytes:
    return b"".join(
        next(
            line
            for length in range(len(name) + len(value) + 4, len(name) + len(value) + 14)
            if len(line := f"{length} {name}={value}\n".encode()) == length
        )
        for name, value in fields.items()
    )


def globals_of(number: int, count: int = 1) -> bytes:
    body = attributes(**{f"k{number}_{other}": "v" for other in range(count)})
    return header(b"g", len(body)) + padded(body)


def picture(number: int) -> bytes:
    return header(b"0", 3, f"{number}.jpg") + padded(b"pix")


SPARSE = attributes(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.jpg"})
LONG = header(b"L", 60_000) + padded(b"n" * 60_000)
HOSTILE = {
    "distinct global attributes": (
        b"".join(globals_of(number) + picture(number) for number in range(3000)),
        "more than 1,000 global attributes",
    ),
    "many global attributes at once": (globals_of(0, 3000) + picture(0), "more than 1,000 global attributes"),
    "a giant attribute": (
        header(b"x", 10_000_015) + padded(attributes(path="a" * 10_000_000)),
        r"a header of 10,000,\d+ bytes",
    ),
    "a chain of long names": (LONG * 100 + picture(0), "more than 262,144 bytes of headers"),
    "a chain of short names": (
        (header(b"L", 3) + padded(b"nn")) * 3000 + picture(0),
        "more than 262,144 bytes of headers",
    ),
    "a map of a sparse file": (
        header(b"x", len(SPARSE)) + padded(SPARSE) + header(b"0", 512 * 4000) + b"999999\n" + b"1\n" * 10**6,
        "no whole tar|more than 262,144",
    ),
    "a negative size": (
        header(b"x", 14) + padded(attributes(size="-1000")) + picture(0),
        "contradicts itself|no header",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_headers_that_claim_anything_cost_little(what: str, tmp_path: Path) -> None:
    data, message = HOSTILE[what]
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))

    def listed() -> None:
        with pytest.raises(UserError, match=message):
            keys(str(tmp_path / "a.tar"))

    assert peak_bytes(listed, 8_000_000) < 8_000_000


def test_the_same_global_attribute_may_come_again(tmp_path: Path) -> None:
    data = b"".join(globals_of(0, 20) + picture(number) for number in range(1500)) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    assert len(keys(str(tmp_path / "a.tar"))) == 1500


def test_archives_beside_parquet_files(tmp_path: Path) -> None:
    write(tmp_path / "00000.tar", [("0.jpg", b"A")])
    pq.write_table(pa.table({"url": ["http://x/0.jpg"], "status": ["success"]}), tmp_path / "00000.parquet")
    assert keys(str(tmp_path)) == ["00000.tar/0.jpg"]  # as img2dataset writes them
    pq.write_table(pa.table({"image": [b"B"]}), tmp_path / "00000.parquet")
    with pytest.raises(
        UserError, match=r"tar archives, as 00000\.tar, and Parquet files .*\n.*input\.format"
    ):
        keys(str(tmp_path))
    assert keys(str(tmp_path), format="tar") == ["00000.tar/0.jpg"]
    assert keys(str(tmp_path), format="parquet") == ["00000.parquet#0"]
