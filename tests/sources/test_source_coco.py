from __future__ import annotations

import json
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.sources.coco import index as coco_index
from cnnbatch.sources.coco import json_lists
from cnnbatch.sources.coco import source as coco
from cnnbatch.sources.coco.rows import row_of
from cnnbatch.sources.coco.source import Coco
from cnnbatch.storage import Storage
from cnnbatch.truth import Class, classes_of
from cnnbatch.truth.problems import left_out_of, partly
from cnnbatch.types import ImageRef, Shard, Source
from tests.places import SHARED
from tests.servers import Bucket, Reply, WebServer
from tests.sourcing import failure, fill, keys, read, source

pytest_plugins = ("tests.s3",)
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # pycocotools' own

SAMPLE = SHARED / "data" / "coco-sample"
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "sea lion"}, {"id": 90, "name": 'a "b"'}]


def image(number: int, name: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "width": 40, "height": 30, **fields}


def annotation(number: int, of: Any, **fields: Any) -> dict[str, Any]:
    box = [number + 0.1, 2, 10.3, 8.7]
    return {"id": number, "image_id": of, "category_id": 7, "bbox": box, "area": 50.5, "iscrowd": 0, **fields}


def write(path: Path, images: Any, annotations: Any = (), categories: Any = CATEGORIES) -> str:
    content = {"info": {"year": [1]}, "images": images, "annotations": list(annotations)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "categories": categories}))
    return str(path)


def rows_of(found: Source, refs: Sequence[ImageRef] | None = None) -> list[dict[str, Any]]:
    """Return the truth as a worker gets it: behind the plan's page, of a source that travelled."""
    shard = Shard(0, tuple(found.refs()) if refs is None else tuple(refs))
    (planned,) = page_shards(page_table([shard], found.columns))
    truth = pickle.loads(pickle.dumps(found)).truth(planned)
    assert truth is not None
    return list(truth.to_pylist())


def oracle(path: str) -> COCO:
    with redirect_stdout(None):
        return COCO(path)


def assert_is_cocos(found: Source, path: str) -> None:
    """Compare everything with pycocotools: images in the file's order, their objects, and the classes."""
    known = oracle(path)
    refs = list(found.refs())
    assert [ref.key for ref in refs] == [one["file_name"] for one in known.dataset["images"]]
    for one, row in zip(known.dataset["images"], rows_of(found, refs), strict=True):
        assert row["image_id"] == str(one["id"])
        assert (row["width"], row["height"]) == (one["width"], one["height"])
        expected = known.loadAnns(known.getAnnIds(one["id"]))
        assert len(row["objects"]) == len(expected)
        for made, theirs in zip(row["objects"], expected, strict=True):
            assert_is_object(made, theirs, known)
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == tuple(
        Class(one["name"], one["id"]) for one in known.cats.values()
    )


def assert_is_object(made: dict[str, Any], theirs: dict[str, Any], known: COCO) -> None:
    box, (x, y, width, height) = made["box"], theirs["bbox"]
    assert (box["x1"], box["y1"]) == (x, y)
    assert (box["x2"] - box["x1"], box["y2"] - box["y1"]) == pytest.approx((width, height), abs=1e-9)
    assert made["label"] == known.cats[theirs["category_id"]]["name"]
    assert made["area"] == theirs.get("area", width * height)
    assert made["crowd"] is bool(theirs.get("iscrowd", 0))
    assert (made["score"], made["difficult"], made["ignore"]) == (None, None, bool(theirs.get("ignore", 0)))
    flat = [float(value) for point in made["keypoints"] or [] for value in point.values()]
    assert flat == theirs.get("keypoints", [])
    if theirs.get("segmentation"):
        assert np.array_equal(coco_mask.decode(made["mask"]), known.annToMask(theirs))
    else:
        assert made["mask"] is None


def masks() -> list[Any]:
    rng = np.random.default_rng(0)
    pixels = np.asfortranarray(rng.random((30, 40)) < 0.5, dtype=np.uint8)
    compressed = coco_mask.encode(pixels)
    flat = pixels.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    polygons = [[1, 1, 20.5, 2, 18, 25.25, 3.5, 20], [30, 5, 39.9, 5, 35, 28]]
    return [
        polygons,
        [[-5, -5, 60, -5, 60, 50]],
        {"counts": runs, "size": [30, 40]},
        {"counts": compressed["counts"].decode(), "size": [30, 40]},
        {"counts": [1200], "size": [30, 40]},
        [],
    ]


# What it gives


def test_everything_is_as_pycocotools_reads_it(tmp_path: Path) -> None:
    images = [image(5, "b/5.jpg"), image(-2, "a.JPG"), image(9, "ключ é.png", width=31), image(11)]
    annotations = [
        *(annotation(n, 5, segmentation=mask, iscrowd=n % 2) for n, mask in enumerate(masks())),
        annotation(20, 9, bbox=[0.1, 0.2, 0.7, 0.1], area=0, ignore=1, category_id=90),
        annotation(21, -2, keypoints=[1.5, 2, 2, 0, 0, 0, 30, 20.25, 1], num_keypoints=2, category_id=3),
        {"id": 22, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "caption": "more", "x": [[1]]},
        annotation(23, 5, bbox=[3, 4, 0, 0]),
    ]
    fill(tmp_path, [one["file_name"] for one in images])
    path = write(tmp_path / "all.json", images, annotations)
    assert_is_cocos(source(path), path)
    assert read(source(path)) == [one["file_name"].encode() for one in images]
    (tmp_path / "all.json").write_text(json.dumps(json.loads(Path(path).read_text()), indent=2))
    assert_is_cocos(source(path), path)
    assert not any("\n" in ref.columns["truth"] for ref in source(path).refs())


def test_the_sample_is_as_pycocotools_reads_it() -> None:
    path = str(SAMPLE / "annotations" / "instances.json")
    if not SAMPLE.is_dir():
        pytest.skip("no COCO sample beside the checkout")
    found = source(path)
    assert_is_cocos(found, path)
    by_file = {ref.key: row for ref, row in zip(found.refs(), rows_of(found), strict=True)}
    folder = source(str(SAMPLE / "images"), truth=path)
    refs = list(folder.refs())
    assert [ref.key for ref in refs] == sorted(by_file)
    assert [by_file[ref.key] for ref in refs] == rows_of(folder, refs)
    assert sum(len(row["objects"]) for row in by_file.values()) == 639


def test_a_file_without_annotations_tells_no_truth(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    (tmp_path / "image_info.json").write_text(json.dumps({"images": [image(1)], "categories": CATEGORIES}))
    assert rows_of(source(str(tmp_path / "image_info.json")))[0]["objects"] is None
    write(tmp_path / "none.json", [image(1)])
    assert rows_of(source(str(tmp_path / "none.json")))[0]["objects"] == []


@pytest.mark.parametrize(
    ("fields", "size", "mask"),
    [
        ({"width": None}, (None, 30), False),
        ({"width": 0}, (None, 30), False),
        ({"height": 30.0}, (40, 30), True),
    ],
)
def test_sizes_that_are_not_known(
    tmp_path: Path, fields: dict[str, Any], size: tuple[Any, Any], mask: bool
) -> None:
    fill(tmp_path, ["1.jpg"])
    polygon, runs = masks()[0], masks()[2]
    objects = [annotation(1, 1, segmentation=polygon), annotation(2, 1, segmentation=runs, area=None)]
    (row,) = rows_of(source(write(tmp_path / "a.json", [image(1, **fields)], objects)))
    assert (row["width"], row["height"]) == size
    assert [one["mask"] is not None for one in row["objects"]] == [mask, True]
    assert row["objects"][1]["area"] == 10.3 * 8.7


def test_polygons_of_two_points_are_left_out_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    shapes: list[Any] = [[[1, 1, 9, 9], [2, 2, 20, 2, 20, 20]], [[1, 1, 9, 9]], [[]], masks()[0]]
    objects = [annotation(number, 1, segmentation=one) for number, one in enumerate(shapes)]
    (row,) = rows_of(source(write(tmp_path / "a.json", [image(1)], objects)))
    assert [one["mask"] is not None for one in row["objects"]] == [True, False, False, True]
    whole = coco_mask.merge(coco_mask.frPyObjects([shapes[0][1]], 30, 40))
    assert row["objects"][0]["mask"]["counts"].encode() == whole["counts"]
    assert row["problem"] == "3 of its polygons are left out: fewer than three points"
    assert left_out_of(row["problem"])[1] == 3
    one = partly(1, "polygons", "fewer than three points")
    assert one == "1 of its polygons is left out: fewer than three points"
    assert left_out_of(one)[1] == 1


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 50)), min_size=3, max_size=6))
def test_polygons_are_clipped_to_the_image(points: list[tuple[int, int]]) -> None:
    flat = [float(side) for point in points for side in point]
    (row,) = [row_of({"id": 1, "width": 40, "height": 30, "objects": [annotated(flat)]})]
    moved = [side + 100 for side in flat]
    larger = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([moved], 230, 240)))
    assert np.array_equal(coco_mask.decode(row["objects"][0]["mask"]), larger[100:130, 100:140])


def annotated(polygon: list[float]) -> dict[str, Any]:
    return {"label": "cat", "bbox": [0, 0, 1, 1], "segmentation": [polygon]}


def test_an_empty_mask_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    empty = {"counts": [1200], "size": [30, 40]}
    (row,) = rows_of(
        source(write(tmp_path / "a.json", [image(1)], [annotation(1, 1, segmentation=empty, area=0)]))
    )
    (one,) = row["objects"]
    assert (one["area"], int(coco_mask.area(one["mask"]))) == (0, 0)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [2, 1, 0], [1, 0, 2]])
def test_sections_come_in_any_order(
    tmp_path: Path, order: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lists, "_BLOCK", 7)  # so that blocks cut everywhere
    parts = [
        ("images", [image(1), image(2)]),
        ("annotations", [annotation(1, 2, category_id=3), annotation(2, 1)]),
        ("categories", CATEGORIES),
    ]
    fill(tmp_path, ["1.jpg", "2.jpg"])
    content = {
        "version": 1234567890123,
        "x": {"annotations": 1},
        **dict(parts[one] for one in order),
        "licenses": [],
    }
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(content, ensure_ascii=False), encoding="utf-8")
    found = source(str(tmp_path / "a.json"))
    assert [[one["label"] for one in row["objects"]] for row in rows_of(found)] == [["cat"], ["sea lion"]]
    assert [one.name for one in coco_index.read_classes(Coco(Storage(), found.url)._open, "")] == [  # type: ignore[attr-defined]
        "cat",
        "sea lion",
        'a "b"',
    ]


# Where the images lie


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("x.json", "."),
        ("instances_val.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/x.json", "."),
        ("instances_val.json", "val"),
    ],
)
def test_likely_folders_of_images(tmp_path: Path, bucket: Bucket, file: str, folder: str) -> None:
    root = fill(tmp_path / "in" / folder, ["s/2.jpg"])
    path = write(tmp_path / "in" / file, [image(1), image(2, "s/2.jpg")])
    refs = list(source(path).refs())
    assert [(ref.key, ref.uri) for ref in refs] == [
        ("1.jpg", f"{root.resolve()}/1.jpg"),
        ("s/2.jpg", f"{root.resolve()}/s/2.jpg"),
    ]
    results = read(source(path))
    assert (failure(results[0]), results[1]) == (("read", "not_found"), b"s/2.jpg")
    inside = os.path.normpath(f"{folder}/s/2.jpg")
    bucket.put(inside, b"s/2.jpg")  # at the bucket's own top: nothing above it may be asked for
    url = bucket.put(file, Path(path).read_bytes())
    assert [ref.uri for ref in source(url, Storage(bucket.options)).refs()][1] == f"{bucket.url}/{inside}"


def test_no_folder_of_images(tmp_path: Path, web: WebServer) -> None:
    path = write(tmp_path / "in/instances_val.json", [image(1)])
    with pytest.raises(
        UserError, match=r"no image such as '1\.jpg' was found in .*/in, .*/in/images, (.|\n)*input.truth"
    ):
        keys(path)
    body = Path(path).read_bytes()
    web.answer = lambda method, path: (
        Reply(body=body)
        if path.startswith("/annotations/instances")
        else Reply(200 if path == "/val/1.jpg" else 404)
    )
    url = f"{web.url()}/annotations/instances_val.json?sig=a/b.c"
    assert [ref.uri for ref in source(url).refs()] == [f"{web.url()}/val/1.jpg"]


def test_nothing_above_a_bucket_is_asked_for(bucket: Bucket) -> None:
    content = {"images": [image(1)], "annotations": [], "categories": CATEGORIES}
    url = bucket.put("instances_val.json", json.dumps(content).encode())
    places = f"{bucket.url}, {bucket.url}/images, {bucket.url}/val\n"
    with pytest.raises(UserError, match=rf"no image such as '1\.jpg' was found in {re.escape(places)}"):
        keys(url, Storage(bucket.options))


def test_a_folder_with_its_truth(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["b.jpg", "a/1.jpg", "new.jpg"])
    images = [image(1, "gone.jpg"), image(2, "b.jpg"), image(3, "./a/1.jpg"), image(4, "a/gone.jpg")]
    path = write(tmp_path / "truth.json", images, [annotation(1, 3), annotation(2, 4)])
    found = source(str(tmp_path / "photos"), truth=path)
    refs = list(found.refs())
    assert [ref.key for ref in refs] == ["a/1.jpg", "b.jpg", "new.jpg", "gone.jpg", "a/gone.jpg"]
    assert [row["image_id"] for row in rows_of(found)] == ["3", "2", None, "1", "4"]
    counts = [None if row["objects"] is None else len(row["objects"]) for row in rows_of(found)]
    assert counts == [1, 0, None, 0, 1]
    results = read(found)
    assert results[:3] == [b"a/1.jpg", b"b.jpg", b"new.jpg"]
    assert [failure(one) for one in results[3:]] == [("read", "not_found")] * 2
    assert keys(f"{tmp_path}/photos/*.jpg", truth=path) == ["b.jpg", "new.jpg"]  # the others are not meant
    assert keys(f"{tmp_path}/photos/b.jpg", truth=path) == ["b.jpg"]


def test_truth_of_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "photos", [f"{number}.jpg" for number in range(5)])
    path = write(tmp_path / "truth.json", [image(1, "train/1.jpg")])
    with pytest.raises(UserError, match=r"none of the first 5 images .*'4\.jpg' here, 'train/1\.jpg' there"):
        keys(str(tmp_path / "photos"), truth=path)
    monkeypatch.setattr(coco, "_UNKNOWN", 3)
    seen = source(str(tmp_path / "photos"), truth=path).refs()
    assert [next(seen).key, next(seen).key] == ["0.jpg", "1.jpg"]
    with pytest.raises(UserError, match=r"none of the first 3 images"):
        next(seen)
    fill(tmp_path / "photos", ["train/1.jpg"])  # it comes late, but it is there
    assert keys(str(tmp_path / "photos"), truth=path)[-1] == "train/1.jpg"


# Going on


names = st.sets(
    st.text("ab.-", min_size=1, max_size=3).map(lambda text: f"x{text}.jpg"), min_size=2, max_size=8
)


@settings(max_examples=40)
@given(names, st.randoms(use_true_random=False), st.booleans())
def test_a_listing_goes_on_behind_any_image(found: set[str], rng: random.Random, whole: bool) -> None:
    listed = sorted(found)
    rng.shuffle(listed)
    there = [name for name in listed if whole or rng.random() < 0.6] or listed[:1]
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), there)
        path = write(Path(folder) / "a.json", [image(n, name) for n, name in enumerate(listed)])
        ways = [source(path)]
        if set(there) & set(listed):
            fill(Path(folder), ["unknown.jpg"])
            ways.append(source(folder, truth=path))
        for way in ways:
            refs = list(way.refs())
            assert sorted(ref.key for ref in refs) == sorted(
                {*listed, *(["unknown.jpg"] if way is not ways[0] else [])}
            )
            for number, ref in enumerate(refs):
                assert list(way.refs(after=ref)) == refs[number + 1 :]


def test_a_listing_goes_on_behind_what_is_gone_or_came(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", ["a.jpg", "b.jpg", "c.jpg"])
    os.symlink("nowhere.jpg", folder / "bb.jpg")
    images = [image(1, "a.jpg"), image(2, "b.jpg"), image(3, "x.jpg"), image(4, "d.jpg")]
    path = write(tmp_path / "truth.json", images)
    found = source(str(folder), truth=path)
    refs = list(found.refs())
    assert [ref.key for ref in refs] == ["a.jpg", "b.jpg", "bb.jpg", "c.jpg", "x.jpg", "d.jpg"]
    assert list(found.refs(after=refs[2])) == refs[3:]
    (folder / "b.jpg").unlink()
    assert [ref.key for ref in found.refs(after=refs[1])] == ["bb.jpg", "c.jpg", "b.jpg", "x.jpg", "d.jpg"]
    fill(folder, ["x.jpg"])
    assert [ref.key for ref in found.refs(after=refs[4])] == ["d.jpg"]
    with pytest.raises(UserError, match=r"truth\.json no longer holds 'y\.jpg'"):
        list(found.refs(after=replace(refs[4], key="y.jpg")))
    with pytest.raises(UserError, match=r"truth\.json no longer holds 'y\.jpg'"):
        list(source(path, truth=None).refs(after=replace(refs[4], key="y.jpg")))


# What it costs


def test_the_file_is_read_when_it_is_needed_and_only_then(tmp_path: Path) -> None:
    fill(tmp_path, ["1.jpg"])
    opened: list[str] = []

    class Noting(Storage):
        def open(self, uri: str) -> Any:
            opened.append(uri)
            return super().open(uri)

    path = write(tmp_path / "a.json", [image(1)])
    found = source(path, Noting())
    list(found.read(Shard(0, ())))
    assert (opened, found.columns.names) == ([], ["truth"])
    assert len(classes_of(found.truth_schema)) == 3  # type: ignore[arg-type]
    assert "_index" not in vars(found)
    refs = list(found.refs())
    assert opened == [path] * 2
    again = pickle.loads(pickle.dumps(found))
    Path(path).unlink()
    assert "_index" not in vars(again)
    assert len(pickle.dumps(found)) < 1000
    assert rows_of(again, refs)[0]["objects"] == []


KILLED = """
import os, signal, sys
from cnnbatch.sources.coco import index as coco_index
from cnnbatch.config.input import Input
from cnnbatch.sources import open_source
from cnnbatch.storage import Storage
coco_index._CACHE_KB = 512
found = open_source(Input(url=sys.argv[1]), Storage())
found._index
size = sum(os.stat(f"/proc/self/fd/{fd}").st_size for fd in os.listdir("/proc/self/fd")
           if "etilqs" in os.path.realpath(f"/proc/self/fd/{fd}"))
print(size, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_index_lies_on_disk_and_is_gone_with_its_process(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    fill(tmp_path, ["0.jpg"])
    polygon = [[float(number) for number in range(600)]]
    objects = [annotation(number, number % 10, segmentation=polygon) for number in range(1000)]
    path = write(tmp_path / "a.json", [image(number) for number in range(10)], objects)
    environment = {**os.environ, "SQLITE_TMPDIR": str(scratch), "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", KILLED, path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert int(done.stdout) > 2 << 20, done.stderr
    assert list(scratch.iterdir()) == []


def test_a_full_disk_is_no_mistake_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_index, "_TABLES", "PRAGMA max_page_count = 9;" + coco_index._TABLES)
    path = write(tmp_path / "a.json", [image(number) for number in range(2000)])
    with pytest.raises(EnvironmentFault, match="disk is full"):
        keys(path)


# Mistakes


def broken(**fields: Any) -> dict[str, Any]:
    content = {"images": [image(1)], "annotations": [annotation(1, 1)], "categories": CATEGORIES}
    return {name: value for name, value in {**content, **fields}.items() if value is not None}


def lacking(item: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != key}


def mask(value: Any) -> dict[str, Any]:
    return broken(annotations=[annotation(1, 1, segmentation=value)])


FAR = [[0, 0, 1e6, 0] * 30]
MISTAKES: list[tuple[Any, str]] = [
    (broken(images=None), r"holds no `images`"),
    (broken(images=[]), r"holds no `images`"),
    (broken(images={"1": image(1)}), r"holds no `images`"),
    (broken(categories=None), r"holds no `categories`.*give an instances file"),
    (broken(images=[image(2), lacking(image(1), "file_name")]), r"images\[1\]: there is no 'file_name' in"),
    (broken(images=[lacking(image(1), "id")]), r"images\[0\]: there is no 'id' in"),
    (broken(images=["1.jpg"]), r"images\[0\]: an object \{\.\.\.\} was expected, got text"),
    (broken(images=[image(1, id=[1])]), r"images\[0\]: the id must be a whole number or text, got \[1\]"),
    (broken(images=[image(1, id=2**70)]), r"the id must be a whole number"),
    (broken(images=[image(1, id="\ud800")]), r"the id must be a whole number"),
    (
        broken(images=[image(1), image(2), image(1, "x.jpg")]),
        r"images\[0\] and images\[2\].* id 1, 1\.jpg and",
    ),
    (
        broken(images=[image(1), image(2, "./1.jpg")]),
        r"images\[0\] and images\[1\].*id 1, 1\.jpg and id 2, 1\.",
    ),
    (broken(images=[image(1, "/etc/passwd")]), r"'/etc/passwd' leaves the folder"),
    (broken(images=[image(1, "a/../../b.jpg")]), r"'\.\./b\.jpg' leaves the folder"),
    (broken(images=[image(1, "..")]), r"'\.\.' leaves the folder"),
    (broken(images=[image(1, "a\0.jpg")]), r"leaves the folder"),
    (broken(images=[image(1, "\ud800.jpg")]), r"leaves the folder"),
    *(
        (broken(annotations=[lacking(annotation(1, 1), key)]), rf"annotations\[0\]: there is no '{key}' in")
        for key in ("image_id", "category_id", "bbox")
    ),
    (broken(annotations=[annotation(1, 1, category_id=8)]), r"annotations\[0\]: the category_id 8 is not in"),
    (
        broken(annotations=[annotation(1, 1), annotation(1, "1")]),
        r"annotations\[1\]: the image_id '1' is not in",
    ),
    (broken(annotations=[annotation(1, 1), *[annotation(1, 2)] * 3]), r"\[1\].*image_id 2 .*3 of the annot"),
    *(
        (broken(annotations=[annotation(1, 1, bbox=box)]), r"annotations\[0\]: expected the bbox \[x, y,")
        for box in (
            [1, 2, 3],
            [1, 2, 3, "4"],
            [1, 2, 3, None],
            "1234",
            {"x": 1},
            [1, 2, 3, 10**400],
            [True] * 4,
        )
    ),
    (broken(annotations=[annotation(1, 1, area="large")]), r"expected the area in pixels, got text"),
    (broken(annotations=[annotation(1, 1, iscrowd="0")]), r"expected iscrowd and ignore as 0 or 1"),
    (broken(annotations=[annotation(1, 1, keypoints=[1, 2])]), r"expected the keypoints \[x, y, visibility"),
    (
        broken(categories=[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]),
        r"\[0\] and categories\[1\].* id 0",
    ),
    (broken(categories=[{"id": 0, "name": "a"}, {"id": 1, "name": "a"}]), r"have the same name 'a'"),
    (broken(categories=[{"id": "x"}]), r"categories\[0\]: there is no 'name'"),
    (broken(categories=[{"id": 1.5, "name": "x"}]), r"categories\[0\]: the id must be"),
    (mask([[1, 2, 3]]), r"expected a polygon of the segmentation as \[x, y, x, y, ...\], got a list of 3"),
    (mask([1, 2, 3, 4]), r"expected the segmentation as polygons"),
    (mask({"counts": "111"}), r"expected the segmentation as polygons"),
    (mask({"counts": [1200], "size": [0, 40]}), r"expected the segmentation as polygons"),
    (
        mask({"counts": [1199], "size": [30, 40]}),
        r"expected run lengths of 40 x 30 pixels in the segmentation, 1,200 in all, got 1,199",
    ),
    (mask({"counts": [1201, -1], "size": [30, 40]}), r"expected run lengths in the segmentation as numbers"),
    (mask({"counts": [1200.0], "size": [30, 40]}), r"expected run lengths in the segmentation as numbers"),
    (mask({"counts": "99999", "size": [30, 40]}), r"expected run lengths of 40 x 30 pixels"),
    (mask({"counts": "zz", "size": [30, 40]}), r"expected run lengths .* or as COCO's text, got text"),
    (mask({"counts": "o" * 50, "size": [30, 40]}), r"expected run lengths .* or as COCO's text, got text"),
    (
        mask({"counts": [1201], "size": [1201, 1]}),
        r"annotations\[0\]: its run lengths are of 1 x 1201 pixels, its image of 40 x 30",
    ),
    (mask(FAR), r"a polygon of the segmentation is longer than 10,000,000 pixels"),
    ([image(1)], r"is not a whole JSON object \{\.\.\.\}: expected \{, got \[, at character 0"),
    (b"", r"is not a whole JSON object .*expected \{, got its end"),
    (b"images: []", r"expected \{, got i"),
    (b'{"images": [], "x": [{"id": 1}', r"expected , or \], got its end, at character 30"),
    (b'{"images": [], "x": [{"id": 1', r"at character 29"),
    (b'{"images": []', r"expected , or \}, got its end"),
    (b'{"x": [1 2]}', r"expected , or \], got 2, at character 9"),
    (b'{"images" []}', r"expected :, got \["),
    (b'{"images": []} {', r"there is more behind its end"),
    (b'{"images": [{"id": NaN}]}', r"NaN is no number of JSON"),
    (b'{"images": ["\xe9"]}', r"UTF-8 was expected"),
    (b'{"images": [' + b"9" * 5000 + b"]}", r"is not a whole JSON object"),
    (b'{"images":' + b"[" * 100_000, r"values nest too deeply"),
    (b'{"images":[' + b'{"a":' * 100_000, r"values nest too deeply"),
]


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_mistakes(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    fill(tmp_path / "photos", ["1.jpg"])
    for found in (source(str(path)), source(str(tmp_path / "photos"), truth=str(path))):
        with pytest.raises(UserError) as error:
            list(found.refs())
        assert re.search(message, str(error.value), re.DOTALL), error.value
        assert str(error.value).startswith(str(path))
        assert "what to do" in str(error.value)


@pytest.mark.parametrize("block", [1, 7, 20, 1000])
def test_a_place_is_told_whatever_was_read_at_once(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lists, "_BLOCK", block)
    (tmp_path / "a.json").write_text('{"images": [], "x": [{"id": 1}, {"id": tru}]}')
    with pytest.raises(UserError, match="Expecting value, at character 39\n"):
        keys(str(tmp_path / "a.json"))


def test_an_element_that_never_ends_costs_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lists, "_LARGEST", 1 << 20)
    monkeypatch.setattr(json_lists, "_BLOCK", 1 << 16)
    (tmp_path / "a.json").write_bytes(b'{"images": [[' + b"1," * (16 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="one element has more than 1,048,576 characters"):
        keys(str(tmp_path / "a.json"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        keys(str(tmp_path / "a.json"))
    with pytest.raises(UserError, match=r"photos cannot be read"):
        keys(str(fill(tmp_path / "photos", ["1.jpg"])), format="coco")
    with pytest.raises(UserError, match="one address was expected, got 2"):
        source([str(tmp_path), str(tmp_path)], format="coco", truth="x.json")


@settings(max_examples=30)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=5))
def test_any_value_is_taken_or_told(value: Any) -> None:
    base = {"images": [image(1)], "annotations": [annotation(1, 1)], "categories": CATEGORIES}
    with tempfile.TemporaryDirectory() as folder:
        path = fill(Path(folder), ["1.jpg"]) / "a.json"
        for section in base:
            for key in base[section][0]:
                changed = {**base, section: [{**base[section][0], key: value}]}
                path.write_text(json.dumps(changed))
                with suppress(UserError):
                    rows_of(source(str(path)))


def test_a_bucket_gives_what_the_folder_gives(tmp_path: Path, bucket: Bucket) -> None:
    images = [image(3, "b.jpg"), image(1, "a/ü.jpg"), image(2, "gone.jpg")]
    fill(tmp_path / "d/images", ["b.jpg", "a/ü.jpg", "other.jpg"])
    path = write(tmp_path / "d/annotations/x.json", images, [annotation(1, 3, segmentation=masks()[0])])
    for name in ("b.jpg", "a/ü.jpg", "other.jpg"):
        bucket.put(f"d/images/{name}", name.encode())
    url, remote = bucket.put("d/annotations/x.json", Path(path).read_bytes()), Storage(bucket.options)
    pairs = [
        (source(path), source(url, remote)),
        (source(f"{tmp_path}/d/images", truth=path), source(f"{bucket.url}/d/images", remote, truth=url)),
    ]
    for here, there in pairs:
        refs = list(there.refs())
        assert [ref.key for ref in refs] == [ref.key for ref in here.refs()]
        assert rows_of(there, refs) == rows_of(here)
        assert [str(one)[:30] for one in read(there, refs)] == [str(one)[:30] for one in read(here)]
        for number, ref in enumerate(refs):
            assert list(there.refs(after=ref)) == refs[number + 1 :]
