from __future__ import annotations

import errno
import os
import pickle
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage import AlreadyExists, Changed, Forbidden, NotFound, Storage, TooLarge, Unreadable
from cnnbatch.types import Span
from tests.servers import Bucket

pytest_plugins = ("tests.s3",)

NAMES = [
    "[x].jpg",
    "a b.jpg",
    "a%20b.jpg",
    "a*.jpg",
    "a-b.jpg",
    "a.jpg",
    "a/b.jpg",
    "a/c/d.jpg",
    "a0.jpg",
    "a?x#c.jpg",
    "~.jpg",
    "ключ.jpg",
    "\uffee.jpg",
    "\U0001f600.jpg",
]


@dataclass(frozen=True)
class Place:
    storage: Storage
    root: str

    def fill(self, names: list[str], data: bytes = b"hello") -> None:
        for name in names:
            self.storage.put(f"{self.root}/{name}", data)

    def names(self, after: str | None = None) -> list[str]:
        found = self.storage.list(self.root, None if after is None else f"{self.root}/{after}")
        return [entry.uri.removeprefix(self.root + "/") for entry in found]


@pytest.fixture(params=["local", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(Storage(), str(tmp_path / "root"))
    if request.param == "memory":
        return Place(Storage(), f"memory://{uuid.uuid4().hex}")
    bucket: Bucket = request.getfixturevalue("bucket")
    return Place(Storage(bucket.options), f"{bucket.url}/root")


def test_every_storage_lists_the_same_files_in_the_same_order(place: Place) -> None:
    place.fill(NAMES)
    assert place.names() == sorted(NAMES, key=str.encode)
    for number, name in enumerate(sorted(NAMES, key=str.encode)):
        assert place.names(after=name) == sorted(NAMES, key=str.encode)[number + 1 :]
        assert place.storage.read(f"{place.root}/{name}") == b"hello"


def test_a_listing_tells_size_and_the_etag_that_head_tells(place: Place) -> None:
    place.fill(["a.jpg", "b/c.jpg"])
    for entry in place.storage.list(place.root):
        assert entry.size == 5
        assert entry == place.storage.head(entry.uri)


def test_a_folder_is_not_its_namesake(place: Place) -> None:
    place.storage.put(f"{place.root}/photos/a.jpg", b"1")
    place.storage.put(f"{place.root}/photos-old/b.jpg", b"2")
    found = place.storage.list(f"{place.root}/photos")
    assert [entry.uri for entry in found] == [f"{place.root}/photos/a.jpg"]


def test_a_folder_that_is_not_there(place: Place) -> None:
    with pytest.raises(NotFound):
        list(place.storage.list(f"{place.root}/none"))


def test_create_refuses_to_overwrite(place: Place, tmp_path: Path) -> None:
    uri = f"{place.root}/deep/part-0.parquet"
    etag = place.storage.create(uri, b"first")
    assert place.storage.head(uri).etag == etag
    spool = tmp_path / "spool"
    spool.write_bytes(b"second")
    for data in (b"second", spool):
        with pytest.raises(AlreadyExists):
            place.storage.create(uri, data)
    assert place.storage.read(uri) == b"first"
    assert place.storage.create(f"{place.root}/deep/part-1.parquet", spool)
    assert place.storage.read(f"{place.root}/deep/part-1.parquet") == b"second"


def test_of_many_creators_one_wins(place: Place) -> None:
    uri = f"{place.root}/lock"

    def create(number: int) -> int | None:
        try:
            place.storage.create(uri, f"{number}".encode() * 1000)
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        winners = [number for number in threads.map(create, range(8)) if number is not None]
    assert len(winners) == 1
    assert place.storage.read(uri) == f"{winners[0]}".encode() * 1000


def test_replace_wants_the_etag_that_was_read(place: Place) -> None:
    uri = f"{place.root}/part"
    first = place.storage.create(uri, b"first")
    second = place.storage.replace(uri, b"second", first)
    assert second != first
    assert place.storage.head(uri).etag == second
    with pytest.raises(Changed):
        place.storage.replace(uri, b"third", first)
    assert place.storage.read(uri) == b"second"
    place.storage.delete(uri)
    with pytest.raises(Changed):
        place.storage.replace(uri, b"fourth", second)
    assert not place.storage.exists(uri)


def test_of_many_replacers_one_wins(place: Place) -> None:
    uri = f"{place.root}/part"
    etag = place.storage.create(uri, b"first")

    def replace(number: int) -> int | None:
        try:
            place.storage.replace(uri, f"{number}".encode(), etag)
        except Changed:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        winners = [number for number in threads.map(replace, range(8)) if number is not None]
    assert len(winners) == 1
    assert place.storage.read(uri) == f"{winners[0]}".encode()


def test_put_overwrites_and_delete_takes_absence(place: Place) -> None:
    uri = f"{place.root}/report.html"
    place.storage.put(uri, b"one")
    place.storage.put(uri, b"two")
    assert place.storage.read(uri) == b"two"
    place.storage.delete(uri)
    place.storage.delete(uri)
    assert not place.storage.exists(uri)
    with pytest.raises(NotFound):
        place.storage.read(uri)
    with pytest.raises(NotFound):
        place.storage.head(uri)


def test_ranges(place: Place) -> None:
    data = bytes(range(256))
    uri = f"{place.root}/container"
    place.storage.put(uri, data)

    @given(st.integers(0, 255), st.integers(0, 300))
    def check(offset: int, length: int) -> None:
        assert place.storage.read(uri, Span(offset, length)) == data[offset : offset + length]

    check()


def test_a_limit_is_kept_before_the_bytes_are_fetched(place: Place) -> None:
    place.storage.put(f"{place.root}/big", b"x" * 1000)
    assert len(place.storage.read(f"{place.root}/big", limit=1000)) == 1000
    with pytest.raises(TooLarge, match="1,000"):
        place.storage.read(f"{place.root}/big", limit=999)


def test_parquet_is_read_from_any_place(place: Place, tmp_path: Path) -> None:
    table = pa.table({"a": list(range(5000)), "b": [str(number) for number in range(5000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=500)
    place.storage.put(f"{place.root}/t.parquet", tmp_path / "t.parquet")
    with place.storage.open(f"{place.root}/t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7, columns=["b"]).column("b")[0].as_py() == "3500"
        assert pq.read_table(file).equals(table)


def test_a_pickled_storage_reaches_the_same(place: Place) -> None:
    place.fill(["a.jpg"])
    again = pickle.loads(pickle.dumps(place.storage))
    assert again.options == place.storage.options
    assert again.read(f"{place.root}/a.jpg") == b"hello"


def test_one_storage_serves_many_threads(place: Place) -> None:
    place.fill([f"{number}.jpg" for number in range(20)])
    fresh = Storage(place.storage.options)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: fresh.read(f"{place.root}/{number % 20}.jpg"), range(200)))
    assert found == [b"hello"] * 200


# Local files


def tree(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def local_names(root: Path, after: str | None = None) -> list[str]:
    found = Storage().list(str(root), None if after is None else f"{root}/{after}")
    return [entry.uri.removeprefix(f"{root}/") for entry in found]


part = st.text(st.sampled_from("ab-./0é😀"), min_size=1, max_size=4).map(lambda text: text.replace("/", "_"))
part = part.filter(lambda text: text not in (".", ".."))
paths = st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12, unique=True)


@given(paths, st.data())
def test_a_local_listing_is_sorted_by_bytes_and_goes_on_anywhere(
    names: list[str], data: st.DataObject
) -> None:
    names = [name for name in names if not any(other.startswith(name + "/") for other in names)]
    with tempfile.TemporaryDirectory() as folder:
        tree(Path(folder), names)
        whole = sorted(names, key=str.encode)
        assert local_names(Path(folder)) == whole
        after = data.draw(
            st.one_of(st.sampled_from(whole), st.lists(part, min_size=1, max_size=2).map("/".join))
        )
        assert local_names(Path(folder), after) == [n for n in whole if n.encode() > after.encode()]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    tree(tmp_path, ["photos/cats/a.jpg", "elsewhere/b.jpg"])
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/cats/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "photos/pipe.jpg")
    assert local_names(tmp_path / "photos") == ["cats/a.jpg", "gone.jpg", "linked/b.jpg"]


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (str(tmp_path), str(tmp_path / "pipe.jpg"), "/dev/zero"):
        with pytest.raises(Unreadable):
            Storage().read(name)
        with pytest.raises(Unreadable):
            Storage().head(name)
    with pytest.raises(NotFound):
        Storage().read(str(tmp_path / ("x" * 300)))


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    tree(tmp_path, ["a.jpg"])
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))).write_bytes(b"x")
    with pytest.raises(UserError, match="UTF-8"):
        local_names(tmp_path)


def test_an_unfinished_file_is_no_object_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        assert local_names(tmp_path) == []
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(EnvironmentFault, match="No space left") as fault:
        Storage().create(str(tmp_path / "part"), b"x")
    assert "free space" in fault.value.mend
    assert os.listdir(tmp_path) == []


def test_create_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    Storage().create(str(tmp_path / "part"), b"first")
    with pytest.raises(AlreadyExists):
        Storage().create(str(tmp_path / "part"), b"second")
    assert local_names(tmp_path) == ["part"]
    assert (tmp_path / "part").read_bytes() == b"first"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
def test_a_broken_disk_is_no_images_fault(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EnvironmentFault, match=os.strerror(number)):
        Storage().read(str(tmp_path / "a.jpg"))


def test_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "a.jpg").write_bytes(b"x")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(Forbidden):
        Storage().read(str(tmp_path / "a.jpg"))
    with pytest.raises(EnvironmentFault, match="Permission") as fault:
        Storage().create(str(tmp_path / "b"), b"x")
    assert "right to write" in fault.value.mend


# Package data


def test_package_data_is_read_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "explosive"
    tree(package, ["data/cat.jpg", "data/more/dog.jpg"])
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    storage = Storage()
    assert storage.read("package:explosive/data/cat.jpg") == b"x"
    assert storage.head("package:explosive/data/cat.jpg").uri == "package:explosive/data/cat.jpg"
    assert [e.uri for e in storage.list("package:explosive/data", "package:explosive/data/cat.jpg")] == [
        "package:explosive/data/more/dog.jpg"
    ]
    with storage.open("package:explosive/data/cat.jpg") as file:
        assert file.read() == b"x"
    with pytest.raises(Unreadable):
        storage.read("package:explosive/../secret")
    with pytest.raises(UserError, match="read only"):
        storage.create("package:explosive/new", b"x")
    with pytest.raises(EnvironmentFault, match="not installed"):
        storage.read("package:no_such_package/a.jpg")
