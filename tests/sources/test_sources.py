from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.sources.files import globs
from cnnbatch.sources.files.source import Files
from cnnbatch.storage import Storage, StorageOptions
from cnnbatch.types import ImageRef, Shard
from tests.memory import peak_bytes
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import failure, fill, keys, read, source

pytest_plugins = ("tests.s3",)

# Folders, globs, files


def test_a_folder_gives_its_images_only(tmp_path: Path) -> None:
    fill(
        tmp_path, ["b.JPG", "a/c.png", "a.webp", "notes.txt", ".hidden.jpg", ".thumbs/x.jpg", "a/.y.jpg", "z"]
    )
    found = source(str(tmp_path))
    refs = list(found.refs())
    assert [ref.key for ref in refs] == ["a.webp", "a/c.png", "b.JPG"]
    assert [ref.uri for ref in refs] == [f"{tmp_path}/{ref.key}" for ref in refs]
    assert all(ref.etag for ref in refs)
    assert read(found) == [b"a.webp", b"a/c.png", b"b.JPG"]
    assert found.columns == pa.schema([])
    assert found.truth_schema is None
    assert found.truth(Shard(0, tuple(refs))) is None


def test_a_bucket_gives_what_the_folder_gives(tmp_path: Path, bucket: Bucket) -> None:
    names = [
        "a-b/1.jpg",
        "a.jpg",
        "a/2.jpg",
        "a/b/3.png",
        "a0.gif",
        "ключ/é.jpg",
        "\uffee.jpg",
        "\U0001f600.jpg",
    ]
    fill(tmp_path / "photos", names)
    for name in [*names, "notes.txt"]:
        bucket.put(f"photos/{name}", name.encode())
    remote = Storage(bucket.options)
    for tail in ("", "/**", "/a/*", "/*.jpg", "/a*/**/*.jpg", "/a?b/[0-9].jpg"):
        assert keys(f"{bucket.url}/photos{tail}", remote) == keys(f"{tmp_path}/photos{tail}")
    found = source(f"{bucket.url}/photos/**", remote)
    assert read(found) == [name.encode() for name in sorted(names, key=str.encode)]
    assert list(pickle.loads(pickle.dumps(found)).refs()) == list(found.refs())
    half = list(found.refs())[3]
    assert [ref.key for ref in found.refs(after=half)] == sorted(names, key=str.encode)[4:]


def test_a_pattern_begins_at_the_folder_before_its_first_wildcard(bucket: Bucket) -> None:
    bucket.put("photos/2026/a.jpg")
    bucket.put("photos/2026/b.dat")
    bucket.put("photos/2025/c.jpg")
    remote = Storage(bucket.options)
    assert keys(f"{bucket.url}/photos/2026/**", remote) == ["a.jpg"]
    assert keys(f"{bucket.url}/photos/20*/a.jpg", remote) == ["2026/a.jpg"]
    assert keys(f"{bucket.url}/photos/2026/*.dat", remote) == ["b.dat"]
    assert keys(f"{bucket.url}/photos/2026/a.jpg", remote) == ["a.jpg"]
    assert keys(f"{bucket.url}", remote) == ["photos/2025/c.jpg", "photos/2026/a.jpg"]


MATCHES = [
    ("**", "a.jpg a/b.jpg a/b/c.jpg", ""),
    ("*", "a.jpg", "a/b.jpg"),
    ("**/*.jpg", "a.jpg a/b/c.jpg", "a/b.png"),
    ("a/**/c.jpg", "a/c.jpg a/b/c.jpg a/b/b/c.jpg", "b/c.jpg a/xc.jpg"),
    ("a/**", "a/c.jpg a/b/c", "a b/c"),
    ("img?.jpg", "img1.jpg imgé.jpg", "img.jpg img12.jpg img/.jpg"),
    ("[a-c]*.jpg", "a.jpg cat.jpg", "dog.jpg"),
    ("[!a-c]*.jpg", "dog.jpg", "cat.jpg /.jpg"),
    ("[]x].jpg", "].jpg x.jpg", "y.jpg"),
    ("[.jpg", "[.jpg", "x.jpg"),
    ("a+(b).jpg", "a+(b).jpg", "aab.jpg"),
    ("[a--b]", "a - b", "c"),
    ("**.jpg", "a.jpg a/b.jpg", "a.png"),
]


@pytest.mark.parametrize(("pattern", "yes", "no"), MATCHES)
def test_patterns(pattern: str, yes: str, no: str) -> None:
    compiled = globs.compiled(pattern)
    assert [name for name in yes.split() if not compiled.fullmatch(name)] == []
    assert [name for name in no.split() if compiled.fullmatch(name)] == []


@given(st.text("abc[]!-*?^/.\\&|~", max_size=8), st.text("abc[]!-^/.", max_size=8))
def test_any_pattern_compiles_or_is_told(pattern: str, name: str) -> None:
    with suppress(UserError):
        globs.compiled(pattern).fullmatch(name)


def test_a_name_with_wildcards_in_it_is_that_file(tmp_path: Path) -> None:
    fill(tmp_path, ["cat [1].jpg", "dogs*/a.jpg"])
    assert keys(str(tmp_path / "cat [1].jpg")) == ["cat [1].jpg"]
    assert keys(str(tmp_path / "dogs*")) == ["a.jpg"]


def test_one_file(tmp_path: Path, web: WebServer) -> None:
    web.answer = lambda method, path: Reply(body=b"image") if path == "/cat.jpg?id=1&sig=S" else Reply(404)
    fill(tmp_path, ["cat.jpeg", "odd.name"])
    assert keys(str(tmp_path / "cat.jpeg")) == ["cat.jpeg"]
    assert keys(str(tmp_path / "odd.name"), format="files") == ["odd.name"]
    found = source(f"{web.url()}/cat.jpg?id=1&sig=S")
    (ref,) = found.refs()
    assert (ref.key, ref.uri, ref.etag) == ("cat.jpg", f"{web.url()}/cat.jpg?id=1&sig=S", '"tag"')
    assert read(found) == [b"image"]
    assert list(found.refs(after=ref)) == []


def test_several_addresses(tmp_path: Path, web: WebServer) -> None:
    web.answer = lambda method, path: Reply(body=b"web")
    fill(tmp_path, ["a/1.jpg", "a/2.png", "b/3.jpg"])
    urls = [
        f"{tmp_path}/b",
        f"{web.url()}/x.jpg?token=S&id=4",
        f"{tmp_path}/a/*.png",
        f"{tmp_path}/a",
        f"{tmp_path}/no.jpg",
    ]
    found = source(urls)
    refs = list(found.refs())
    assert [ref.key for ref in refs] == [
        f"{tmp_path}/b/3.jpg",
        f"{web.url()}/x.jpg?id=4",
        f"{tmp_path}/a/2.png",  # the folder names it again, and it comes once
        f"{tmp_path}/a/1.jpg",
        f"{tmp_path}/no.jpg",
    ]
    results = read(found)
    assert results[:4] == [b"b/3.jpg", b"web", b"a/2.png", b"a/1.jpg"]
    assert failure(results[4]) == ("read", "not_found")
    for number, ref in enumerate(refs):
        assert list(found.refs(after=ref)) == refs[number + 1 :]
    with pytest.raises(UserError, match="no longer names"):
        list(found.refs(after=ImageRef("x", "/x.jpg")))


def test_nothing_to_read_is_told(tmp_path: Path, bucket: Bucket) -> None:
    fill(tmp_path, ["photos/a.txt", "photos/b.txt", "photos/c.md", "photos/d", "empty/.keep"])
    with pytest.raises(
        UserError, match=r"expected images .* found 2 \.txt, 1 without suffix, 1 \.md|2 \.txt, 1 \.md, 1 wi"
    ):
        keys(str(tmp_path / "photos"))
    with pytest.raises(UserError, match=r"expected files that match \*\.png"):
        keys(str(tmp_path / "photos/*.png"))
    with pytest.raises(UserError, match="did you mean photos"):
        keys(str(tmp_path / "photo"))
    with pytest.raises(UserError, match="did you mean photos"):
        keys(str(tmp_path / "photo/**"))
    with pytest.raises(UserError, match="there is no file or folder"):
        keys(f"{bucket.url}/none", Storage(bucket.options))
    fill(tmp_path, ["photos/a.jpg"])
    named = {"truth": "truth", "format": "files"}
    fields: list[dict[str, Any]] = [{"key": "x"}, {"keep": ("x",)}, named, {"split": "x"}]
    for field in fields:
        with pytest.raises(UserError, match="is read as files, which has no use for it"):
            source(str(tmp_path / "photos"), **field)


name = st.text("ab.-0", min_size=1, max_size=3).filter(lambda text: not text.startswith("."))
tree = st.lists(st.lists(name, max_size=2), min_size=1, max_size=10)


@given(tree, st.data())
def test_keys_are_unique_sorted_and_resumed_anywhere(folders: list[list[str]], data: st.DataObject) -> None:
    names = {"/".join([*folder, f"{number}.jpg"]) for number, folder in enumerate(folders)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            fill(Path(folder), sorted(names))
        except (FileExistsError, NotADirectoryError):
            return
        found = Files(Storage(), (folder,))
        refs = list(found.refs())
        assert [ref.key for ref in refs] == sorted(names, key=str.encode)
        number = data.draw(st.integers(0, len(refs) - 1))
        assert list(found.refs(after=refs[number])) == refs[number + 1 :]


@pytest.mark.slow
def test_a_large_folder_costs_little_memory(tmp_path: Path) -> None:
    for number in range(20_000):
        os.mknod(tmp_path / f"{number:08}.jpg")

    def listed() -> None:
        assert sum(1 for _ in Files(Storage(), (str(tmp_path),)).refs()) == 20_000

    limit = 20_000 * 100 + 500_000
    assert peak_bytes(listed, limit) < limit


# Whose fault


def test_an_image_that_is_gone_is_a_row_and_a_folder_that_is_gone_is_not(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["a.jpg", "x/b.jpg", "x/c.jpg"])
    found = source(str(tmp_path / "photos"))
    refs = list(found.refs())
    (tmp_path / "photos/x/b.jpg").unlink()
    (tmp_path / "photos/x/c.jpg").unlink()
    (tmp_path / "photos/x/c.jpg").mkdir()
    results = read(found, refs)
    assert results[0] == b"a.jpg"
    assert failure(results[1]) == ("read", "not_found")
    assert failure(results[2]) == ("read", "unreadable")
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(EnvironmentFault, match="missing or empty"):
        read(found, refs)
    (tmp_path / "photos").mkdir()  # as a mount point is before the mount
    with pytest.raises(EnvironmentFault, match="missing or empty"):
        read(found, refs)


def forbidding(*names: str) -> Any:
    def answer(method: str, path: str) -> Reply:
        if any(name in path for name in names):
            return Reply.error(403, "AccessDenied")
        return Reply(body=b"image")

    return answer


def test_one_forbidden_object_is_a_row_and_a_forbidden_bucket_is_not(web: WebServer, aws_keys: None) -> None:
    storage = Storage(StorageOptions(endpoint=web.url(), retries=0))
    refs = [ImageRef(name, f"s3://images/{name}") for name in ("no.jpg", "a.jpg", "b.jpg")]
    found = Files(storage, ("s3://images",))
    web.answer = forbidding("no.jpg")
    results = read(found, refs)
    assert failure(results[0]) == ("read", "forbidden")  # nothing was read before: its neighbours are asked
    assert results[1:] == [b"image", b"image"]
    web.answer = forbidding("jpg", "list-type")
    with pytest.raises(EnvironmentFault, match="refused"):
        read(Files(Storage(storage.options), ("s3://images",)), refs)


def test_a_shard_of_forbidden_objects_only_asks_for_others_in_the_folder(
    web: WebServer, aws_keys: None
) -> None:
    objects = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-11-24T04:00:00.000Z</LastModified></Contents>"
        for key in ("a.jpg", "no.jpg")
    )

    def answer(method: str, path: str) -> Reply:
        if "list-type" in path:
            return Reply(body=f"<ListBucketResult>{objects}</ListBucketResult>".encode())
        return forbidding("no.jpg")(method, path)  # type: ignore[no-any-return]

    web.answer = answer
    found = Files(Storage(StorageOptions(endpoint=web.url(), retries=0)), ("s3://images",))
    assert failure(read(found, [ImageRef("no.jpg", "s3://images/no.jpg")])[0]) == ("read", "forbidden")


def test_refused_credentials_are_no_rows(web: WebServer, aws_keys: None) -> None:
    web.answer = lambda method, path: Reply.error(403, "InvalidAccessKeyId")
    found = Files(Storage(StorageOptions(endpoint=web.url(), retries=0)), ("s3://images",))
    with pytest.raises(EnvironmentFault, match="credentials are refused"):
        read(found, [ImageRef("a.jpg", "s3://images/a.jpg")])


def test_an_input_that_may_not_be_listed(web: WebServer, aws_keys: None) -> None:
    web.answer = lambda method, path: Reply.error(403, "AccessDenied")
    found = Files(Storage(StorageOptions(endpoint=web.url(), retries=0)), ("s3://images/photos",))
    with pytest.raises(EnvironmentFault, match="may not be listed"):
        list(found.refs())


def test_a_large_file_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.sources.reading.MAX_BYTES", 3)
    fill(tmp_path, ["long-name.jpg"])
    assert failure(read(source(str(tmp_path)))[0]) == ("read", "too_large")
