"""Panoptic COCO files: objects with masks and `is_thing`, maps of classes, and what is wrong with some."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.output.plan import page_shards, page_table
from cnnbatch.sources.soundness import require_sound
from cnnbatch.truth import Class, classes_of, ignored_of
from cnnbatch.types import Shard, Source
from tests.conftest import jpeg
from tests.sourcing import source

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
    {"id": 3, "name": "car"},
]
NUMBERS = np.zeros((48, 64), np.int64)
NUMBERS[:10] = 70_000
NUMBERS[10:30, :20] = 300
NUMBERS[10:30, 30:50] = 5
SEGMENTS: list[dict[str, Any]] = [
    {"id": 70_000, "category_id": 7, "bbox": [0, 0, 64, 10], "area": 640, "iscrowd": 0},
    {"id": 300, "category_id": 1, "bbox": [0, 10, 20, 20], "area": 400, "iscrowd": 0},
    {"id": 5, "category_id": 1, "bbox": [30, 10, 20, 20], "area": 400, "iscrowd": 1},
]


def png(numbers: NDArray[np.int64], mode: str = "RGB") -> bytes:
    colours = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(colours).convert(mode).save(sink, "PNG")
    return sink.getvalue()


def write(
    folder: Path,
    segments: list[dict[str, Any]] = SEGMENTS,
    data: bytes | None = None,
    more: list[dict[str, Any]] = [],  # noqa: B006
    categories: list[dict[str, Any]] = CATEGORIES,
) -> str:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in (1, 2)]
    annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}, *more]
    (folder / "annotations" / "panoptic").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    for one in images:
        (folder / "images" / str(one["file_name"])).write_bytes(jpeg(1))
    (folder / "annotations" / "panoptic" / "1.png").write_bytes(data or png(NUMBERS))
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / "panoptic.json"
    path.write_text(json.dumps(content))
    return str(path)


def rows(found: Source) -> list[dict[str, Any]]:
    """Return the truth as a worker gets it: behind the plan's page, of a source that travelled."""
    (planned,) = page_shards(page_table([Shard(0, tuple(found.refs()))], found.columns))
    table = pickle.loads(pickle.dumps(found)).truth(planned)
    assert table is not None
    return list(table.to_pylist())


def test_segments_are_objects_with_masks(tmp_path: Path) -> None:
    found = source(write(tmp_path))
    first, second = rows(found)
    assert (first["image_id"], first["width"], first["height"]) == ("1", 64, 48)
    assert second["objects"] is None
    assert [(one["label"], one["is_thing"], one["crowd"]) for one in first["objects"]] == [
        ("sky", False, False),
        ("person", True, False),
        ("person", True, True),
    ]
    for one, segment in zip(first["objects"], SEGMENTS, strict=True):
        assert np.array_equal(coco.decode(one["mask"]), segment["id"] == NUMBERS)
        assert one["area"] == segment["area"]
        x, y, width, height = segment["bbox"]
        assert one["box"] == {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("person", 1), Class("sky", 7), Class("car", 3))
    require_sound(found, [Shard(0, tuple(found.refs()))])


def test_boxes_and_areas_that_are_not_stated_are_those_of_masks(tmp_path: Path) -> None:
    bare = [{"id": one["id"], "category_id": one["category_id"]} for one in SEGMENTS]
    stated, measured = rows(source(write(tmp_path / "a")))[0], rows(source(write(tmp_path / "b", bare)))[0]
    for one, other in zip(stated["objects"], measured["objects"], strict=True):
        assert {**one, "crowd": False} == other


def test_a_segment_without_pixels_is_kept(tmp_path: Path) -> None:
    more = [*SEGMENTS, {"id": 9, "category_id": 3}]
    objects = rows(source(write(tmp_path, more)))[0]["objects"]
    assert (objects[3]["label"], objects[3]["area"]) == ("car", 0)
    assert not coco.decode(objects[3]["mask"]).any()


def test_maps_have_the_ids_of_categories(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = source(path, format="coco_maps")
    first, second = rows(found)
    expected = np.full(NUMBERS.shape, 255)
    for one in SEGMENTS:
        expected[one["id"] == NUMBERS] = one["category_id"]
    assert np.array_equal(class_map.from_png(first["map"]), expected)
    assert second["map"] is None
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("person", 1), Class("car", 3), Class("sky", 7))
    assert ignored_of(found.truth_schema) == {255}
    folder = source(str(tmp_path / "images"), format="coco_maps", truth=path, relabel={"sky": None})
    assert np.array_equal(class_map.from_png(rows(folder)[0]["map"]), np.where(expected == 7, 255, expected))


def test_maps_of_large_ids_have_sixteen_bits(tmp_path: Path) -> None:
    categories = [{**one, "id": one["id"] + 299} for one in CATEGORIES]
    segments = [{**one, "category_id": one["category_id"] + 299} for one in SEGMENTS]
    found = source(write(tmp_path, segments, categories=categories), format="coco_maps")
    numbers = class_map.from_png(rows(found)[0]["map"])
    assert numbers.dtype == np.uint16
    assert set(np.unique(numbers).tolist()) == {300, 306, 65_535}
    assert found.truth_schema is not None
    assert 65_535 in ignored_of(found.truth_schema)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(np.where(NUMBERS == 5, 6, NUMBERS)), r"1.png has colours that are no segment's id: 6"),
        (png(NUMBERS, "L"), "1.png: expected a PNG of colours, got one of L"),
        (png(NUMBERS)[:70], "1.png: it is no whole PNG file"),
        (b"no picture", r"1.png: it is no whole PNG file\n"),
        (jpeg(1), "1.png: expected a PNG file, got JPEG, whose values are not kept exactly\n"),
        (png(NUMBERS[:40]), "its ground truth is for 64 x 40 pixels, the image has 64 x 48"),
    ],
)
def test_a_map_that_is_none_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, data=data)
    for format in ("coco", "coco_maps"):
        found = source(path, format=format)
        with pytest.raises(UserError, match=words):
            require_sound(found, [Shard(0, tuple(found.refs()))])


def test_a_map_that_is_missing_is_said(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "annotations/panoptic/1.png").unlink()
    assert rows(source(path))[0]["problem"] == "its map 1.png is missing; its objects are left out"


SECOND = {"image_id": 1, "file_name": "1.png", "segments_info": []}


@pytest.mark.parametrize(
    ("segments", "more", "words"),
    [
        (SEGMENTS, [SECOND], r"annotations\[0\] and annotations\[1\]: are both of the image 1"),
        (SEGMENTS, [{**SECOND, "image_id": 8}], r"annotations\[1\]: the image_id 8 is not in `images`"),
        (SEGMENTS, [{**SECOND, "image_id": 2, "file_name": "../x.png"}], "leaves the folder of the maps"),
        ([{"id": 0, "category_id": 1}], [], "expected the id of each segment, a number from 1 to"),
        ([{"id": 3, "category_id": 1}] * 2, [], "two of its segments have the same id"),
        ([{"id": 3, "category_id": 2}], [], r"annotations\[0\]: the category_id 2 is not in"),
        ([{"id": 3}], [], r"annotations\[0\].segments_info\[0\]: there is no 'category_id'"),
        ([{"id": 3, "category_id": 1, "bbox": [1]}], [], "expected the bbox"),
        ("none", [], r"expected segments_info \[\{id, category_id, ...\}, ...\], got text"),
    ],
)
def test_mistakes_of_the_file_are_refused(segments: Any, more: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        list(source(write(tmp_path, segments, more=more)).refs())


def test_maps_are_made_of_panoptic_files_with_numbers_for_categories(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    image = {"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": CATEGORIES}))
    with pytest.raises(UserError, match="is no panoptic file: none of its annotations has segments_info"):
        list(source(str(path), format="coco_maps").refs())
    texts = [{**one, "id": str(one["id"])} for one in CATEGORIES]
    path.write_text(json.dumps({"images": [image], "annotations": [], "categories": texts}))
    with pytest.raises(UserError, match="the id of a category is a number from 0 to 65,534, got '1' of"):
        source(str(path), format="coco_maps")


def test_the_sample_s_segments_are_its_instances_and_more(shared: Path) -> None:
    folder = shared / "data" / "coco-sample" / "annotations"
    panoptic, instances = source(str(folder / "panoptic.json")), source(str(folder / "instances.json"))
    refs = list(panoptic.refs())
    keys = [ref.key for ref in refs]
    by_key = {ref.key: ref for ref in instances.refs()}
    assert sorted(keys) == sorted(by_key)
    some = keys[::8]
    whole = panoptic.truth(Shard(0, tuple(refs[::8])))
    things = instances.truth(Shard(0, tuple(by_key[key] for key in some)))
    assert whole is not None
    assert things is not None
    for row, other in zip(whole.to_pylist(), things.to_pylist(), strict=True):
        mine = [one for one in row["objects"] if one["is_thing"]]
        assert [one["label"] for one in mine] == [one["label"] for one in other["objects"]]
        for one, same in zip(mine, other["objects"], strict=True):
            assert np.array_equal(coco.decode(one["mask"]), coco.decode(same["mask"]))
            assert one["area"] == coco.area(one["mask"])
        covered = sum(coco.decode(one["mask"]).astype(int) for one in row["objects"])
        assert covered.max() == 1
    require_sound(panoptic, [Shard(0, tuple(refs[:20]))])
    maps = source(str(folder / "panoptic.json"), format="coco_maps")
    table = maps.truth(Shard(0, tuple(refs[::8])))
    assert table is not None
    for row, mapped in zip(whole.to_pylist(), table.to_pylist(), strict=True):
        numbers = class_map.from_png(mapped["map"])
        assert maps.truth_schema is not None
        names = {int(one.id): one.name for one in classes_of(maps.truth_schema)}
        for one in row["objects"]:
            inside = coco.decode(one["mask"]).astype(bool)
            assert {names[number] for number in np.unique(numbers[inside]).tolist()} == {one["label"]}
