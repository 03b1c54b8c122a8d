"""A name that exists is no pattern, whatever characters it has; backslashes of Windows are slashes."""

from __future__ import annotations

import glob
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnnbatch.errors import UserError
from cnnbatch.sources.coco.source import Coco
from cnnbatch.sources.files import patterns
from cnnbatch.storage import Storage
from cnnbatch.types import Failure
from tests.servers import Bucket
from tests.sources.test_source_coco import annotation, image, write
from tests.sources.test_source_voc import xml
from tests.sourcing import fill, keys, listed, read, source

pytest_plugins = ("tests.s3",)

ODD = (
    "br [2020]",
    "we?ird",
    "st*r",
    "{a,b}",
    "no #1",
    "100%",
    "%41",
    "[a",
    "a]b",
    "[!x]",
    "ti~de",
    "qu'o\"te",
)


@pytest.mark.parametrize("name", ODD)
def test_local_names_are_names(name: str, tmp_path: Path) -> None:
    fill(tmp_path, [f"{name}/a.jpg", f"{name}/b{name}.jpg", f"{name}/n.txt", "other/c.jpg"])
    files = ["a.jpg", f"b{name}.jpg"]
    for url in (f"{tmp_path}/{name}", f"{tmp_path}/{name}/*.jpg", f"{tmp_path}/{name}/**"):
        assert keys(url) == sorted(files)
    assert keys(f"{tmp_path}/{name}/b{name}.jpg") == [f"b{name}.jpg"]
    assert read(source(f"{tmp_path}/{name}/b{name}.jpg")) == [f"{name}/b{name}.jpg".encode()]
    assert keys([f"{tmp_path}/{name}", f"{tmp_path}/other"]) == [
        *(f"{tmp_path}/{name}/{file}" for file in sorted(files)),
        f"{tmp_path}/other/c.jpg",
    ]


@pytest.mark.slow
def test_names_in_a_bucket_are_names(bucket: Bucket) -> None:
    storage = Storage(bucket.options)
    for name in ODD:
        for file in ("a.jpg", f"b{name}.jpg"):
            bucket.put(f"{name}/{file}", f"{name}/{file}".encode())
    for name in ODD:
        files = sorted(["a.jpg", f"b{name}.jpg"])
        for url in (f"{bucket.url}/{name}", f"{bucket.url}/{name}/*.jpg"):
            found = source(url, storage)
            assert [ref.key for ref in found.refs()] == files
            assert read(found) == [f"{name}/{file}".encode() for file in files]
        assert keys(f"{bucket.url}/{name}/b{name}.jpg", storage) == [f"b{name}.jpg"]


@pytest.mark.parametrize(
    "pattern",
    [
        "ph [2020]/*.jpg",
        "ph?[[]2020]/*.jpg",
        "ph [2020]/[ab].jpg",
        "ph*/b.jpg",
        "p?[!x]*/**/b.jpg",
        "*/*.jpg",
    ],
)
def test_patterns_behind_names_match_what_the_shells_do(pattern: str, tmp_path: Path) -> None:
    """Python's glob is the oracle, given the names that exist escaped."""
    fill(tmp_path, ["ph [2020]/a.jpg", "ph [2020]/b.jpg", "ph 2/b.jpg", "ph 0/b.jpg", "x/a.jpg"])
    shells = pattern.replace("ph [2020]", glob.escape("ph [2020]"))
    expected = [str(path) for path in glob.glob(f"{tmp_path}/{shells}", recursive=True)]
    assert sorted(ref.uri for ref in source(f"{tmp_path}/{pattern}").refs()) == sorted(expected)


def test_a_pattern_that_no_name_has_is_a_pattern(bucket: Bucket, tmp_path: Path) -> None:
    fill(tmp_path, ["br 2/a.jpg", "br 9/a.jpg"])
    assert keys(f"{tmp_path}/br [2020]/a.jpg") == ["br 2/a.jpg"]
    bucket.put("br 2/a.jpg")
    assert keys(f"{bucket.url}/br [2020]/*.jpg", Storage(bucket.options)) == ["br 2/a.jpg"]
    assert patterns.split("https://host/a[1].jpg?x=*", Storage()) == ("https://host/a[1].jpg?x=*", None)


@pytest.mark.parametrize("name", ["set [1]", "what?", "a*b"])
def test_containers_and_lists_of_such_names(name: str, tmp_path: Path, bucket: Bucket) -> None:
    folder = tmp_path / name
    fill(folder, ["a.jpg"])
    with tarfile.open(folder / f"{name}.tar", "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"A"))
    pq.write_table(pa.table({"image": [b"A"]}), folder / f"{name}.parquet")
    (folder / f"{name}.csv").write_text("file,label\na.jpg,x\n")
    (folder / f"{name}.txt").write_text("a.jpg\n")
    fill(folder / "tars", [])
    (folder / "tars").mkdir()
    (folder / f"{name}.tar").rename(folder / "tars" / f"{name}.tar")
    expected = {
        "tars": f"{name}.tar/a.jpg",
        f"tars/{name}.tar": "a.jpg",
        "tars/*.tar": f"{name}.tar/a.jpg",
        f"{name}.parquet": f"{name}.parquet#0",
        f"{name}.csv": f"{folder}/a.jpg",
        f"{name}.txt": f"{folder}/a.jpg",
    }
    assert {place: keys(f"{folder}/{place}")[0] for place in expected} == expected
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
    storage, root = Storage(bucket.options), f"{bucket.url}/{name}"
    there = {place: key.replace(str(folder), root) for place, key in expected.items()}
    assert {place: keys(f"{root}/{place}", storage)[0] for place in expected} == there


def test_a_list_may_name_such_files(tmp_path: Path) -> None:
    fill(tmp_path, [f"{name}/a.jpg" for name in ODD])
    found = source(listed(tmp_path, "\n".join(f"{name}/a.jpg" for name in ODD)))
    assert read(found) == [f"{name}/a.jpg".encode() for name in ODD]


def test_a_folder_called_like_the_objects_of_another(tmp_path: Path) -> None:
    fill(tmp_path, ["boxes#objects/a.jpg"])
    assert keys(f"{tmp_path}/boxes#objects") == ["a.jpg"]


WINDOWS = "images\\a.jpg"


def windows(folder: Path, names: Sequence[str], files: Sequence[str]) -> str:
    """Write images, and a COCO file that knows them by ``names``."""
    fill(folder, files)
    images = [image(number, name) for number, name in enumerate(names, 1)]
    objects = [annotation(number, number) for number in range(1, len(names) + 1)]
    return write(folder / "instances.json", images, objects)


@pytest.mark.parametrize("name", [WINDOWS, ".\\images\\a.jpg", "images/sub\\..\\a.jpg", "images\\\\a.jpg"])
def test_cocos_names_of_windows(name: str, tmp_path: Path) -> None:
    path = windows(tmp_path, [name], ["images/a.jpg"])
    found = source(path)
    assert [(ref.key, ref.uri) for ref in found.refs()] == [("images/a.jpg", f"{tmp_path}/images/a.jpg")]
    assert read(found) == [b"images/a.jpg"]
    (ref,) = source(str(tmp_path), truth=path).refs()
    assert (ref.key, json.loads(ref.columns["truth"])["id"]) == ("images/a.jpg", 1)
    assert list(found.refs(after=ref)) == []


def test_a_backslash_of_a_files_own_stays(tmp_path: Path) -> None:
    names = ["a\\b.jpg", "a\\c.jpg", "a/d.jpg", "gone\\e.jpg", "..\\f.jpg"]
    path = windows(tmp_path, names, ["a\\b.jpg", "a/b.jpg", "a/c.jpg", "a/d.jpg"])
    refs = list(source(path).refs())
    assert [ref.key for ref in refs] == ["a\\b.jpg", "a/c.jpg", "a/d.jpg", "gone/e.jpg", "..\\f.jpg"]
    results = read(source(path))
    assert results[:3] == [b"a\\b.jpg", b"a/c.jpg", b"a/d.jpg"]
    assert [one.code for one in results[3:] if isinstance(one, Failure)] == ["not_found", "not_found"]
    for place, ref in enumerate(refs):
        assert list(source(path).refs(after=ref)) == refs[place + 1 :]
    of_folder = {ref.key: ref for ref in source(str(tmp_path), truth=path).refs()}
    known = [key for key, ref in of_folder.items() if ref.columns["truth"] is not None]
    assert sorted(known) == sorted(ref.key for ref in refs)
    assert of_folder["a/b.jpg"].columns["truth"] is None


def test_two_names_of_one_image_are_told(tmp_path: Path) -> None:
    path = windows(tmp_path, ["images/a.jpg", WINDOWS], ["images/a.jpg"])
    with pytest.raises(UserError, match=r"images\[0\] and images\[1\]: are the same image, images/a.jpg"):
        keys(path)


@pytest.mark.parametrize("own", [False, True])
def test_backslashes_in_a_bucket(own: bool, bucket: Bucket, tmp_path: Path) -> None:
    """The first name tells for all: either they are names there, as some tools put them, or paths."""
    storage = Storage(bucket.options)
    names = [f"images\\{number}.jpg" for number in range(3)]
    expected = names if own else [name.replace("\\", "/") for name in names]
    for name in expected:
        bucket.put(name, name.encode())
    path = write(tmp_path / "x.json", [image(number, name) for number, name in enumerate(names)])
    found = source(bucket.put("instances.json", Path(path).read_bytes()), storage)
    assert isinstance(found, Coco)
    assert [ref.key for ref in found.refs()] == expected
    assert read(found) == [name.encode() for name in expected]
    table = "\n".join(["file,n", *(f"{name},1" for name in names)])
    for suffix, text in ((".txt", "\n".join(names)), (".csv", table)):
        found = source(bucket.put(f"list{suffix}", text.encode()), storage)
        assert read(found) == [name.encode() for name in expected]


def test_lists_of_windows(tmp_path: Path) -> None:
    fill(tmp_path, ["images/a.jpg", "own\\b.jpg", "own/b.jpg", "c.jpg"])
    names = [WINDOWS, "own\\b.jpg", ".\\c.jpg", "..\\d.jpg", "C:\\e.jpg"]
    for suffix, text in (
        (".txt", "\n".join(names)),
        (".csv", "\n".join(["file,n", *(f"{n},1" for n in names)])),
    ):
        found = source(listed(tmp_path, text, suffix))
        assert [ref.key for ref in found.refs()][:3] == [
            f"{tmp_path}/{name}" for name in ("images/a.jpg", "own\\b.jpg", "c.jpg")
        ]
        results = read(found)
        assert results[:3] == [b"images/a.jpg", b"own\\b.jpg", b"c.jpg"]
        assert [one.code for one in results[3:] if isinstance(one, Failure)] == ["forbidden", "not_found"]
    pq.write_table(pa.table({"file": names[:3]}), tmp_path / "list.parquet")
    assert read(source(str(tmp_path / "list.parquet"))) == results[:3]


def test_lists_of_a_tree_may_be_windows_and_xml_names_no_file(tmp_path: Path) -> None:
    """An XML file belongs to the image of its own name, whatever its <filename> and <folder> say."""
    fill(tmp_path, ["JPEGImages/cam/a.jpg", "JPEGImages/own\\b.jpg", "JPEGImages/own/b.jpg"])
    for name in ("Annotations/cam/a.xml", "ImageSets/Main/val.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "Annotations" / "cam" / "a.xml").write_text(xml().replace("other.jpg", "cam\\other.jpg"))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("cam\\a\nown\\b\n")
    found = source(str(tmp_path), format="voc", split="val")
    assert read(found) == [b"JPEGImages/cam/a.jpg", b"JPEGImages/own\\b.jpg"]


def category(number: int, name: str, above: Any = None) -> dict[str, Any]:
    return {"id": number, "name": name, **({} if above is None else {"supercategory": above})}


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([category(0, "helmet", "none"), category(1, "helmet", "helmet")], {"helmet": 1}),
        ([category(1, "helmet", "helmet"), category(0, "helmet", "none")], {"helmet": 1}),
        (
            [category(0, "helmet"), category(1, "cap", "helmet"), category(2, "helmet", "helmet")],
            {"cap": 1, "helmet": 2},
        ),
        (
            [category(5, "food", ""), category(3, "fruit", "food"), category(4, "food", "fruit")],
            {"fruit": 3, "food": 4},
        ),
        (
            [category(4, "food", "fruit"), category(3, "fruit", "food"), category(5, "food", 7)],
            {"food": 4, "fruit": 3},
        ),
        ([category(1, "cat", "cat"), category(2, "dog", "dog")], {"cat": 1, "dog": 2}),
        ([category(1, "cat", "dog"), category(2, "dog", "cat")], {"cat": 1, "dog": 2}),
    ],
)
def test_a_root_may_have_the_name_of_its_child(
    categories: Any, expected: dict[str, int], tmp_path: Path
) -> None:
    fill(tmp_path, ["1.jpg"])
    objects = [annotation(n, 1, category_id=one["id"]) for n, one in enumerate(categories)]
    found = source(write(tmp_path / "instances.json", [image(1)], objects, categories))
    assert isinstance(found, Coco)
    assert {one.name: one.id for one in found.classes} == expected
    (ref,) = found.refs()
    assert {one.name: one.id for one in found.classes} == expected
    names = [one["label"] for one in json.loads(ref.columns["truth"])["objects"]]
    assert names == [one["name"] for one in categories]


@pytest.mark.parametrize(
    "above", [("animal", "animal"), ("cat", "cat"), (None, None), ("none", "animal"), ("cat", "cat", "none")]
)
def test_other_categories_of_one_name_are_refused(above: Sequence[Any], tmp_path: Path) -> None:
    categories = [category(number, "cat", name) for number, name in enumerate(above)]
    with pytest.raises(UserError, match=r"categories\[0\] and categories\[1\]: have the same name 'cat'"):
        keys(write(tmp_path / "instances.json", [image(1)], (), categories))
