"""Pictures with the masks of objects: a file an object, or one file with a number or a class for each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from cnnbatch.errors import UserError
from cnnbatch.sources.soundness import require_sound
from cnnbatch.truth import Class, classes_of
from cnnbatch.types import Shard, Source
from tests.conftest import jpeg
from tests.sourcing import source

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'

EMPTY = np.zeros((48, 64), np.uint8)
LEFT, RIGHT = EMPTY.copy(), EMPTY.copy()
LEFT[5:20, 3:10] = 255
RIGHT[5:20, 40:60] = 1
TWO = np.where(LEFT > 0, 1, np.where(RIGHT > 0, 7, 0)).astype(np.uint8)


def png(values: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, "PNG")
    return sink.getvalue()


def write(folder: Path, pictures: str, **masks: NDArray[Any]) -> Path:
    for name in pictures.split():
        put(folder / "images" / f"{name}.jpg", jpeg(1))
    for name, values in masks.items():
        put(folder / "masks" / f"{name.replace('__', '/')}.png", png(values))
    return folder


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def of(folder: Path, truth: str = "masks", **fields: Any) -> Source:
    return source(f"{folder}/images", format="object_masks", truth=f"{folder}/{truth}", **fields)


def rows(found: Source) -> dict[str, dict[str, Any]]:
    refs = tuple(found.refs())
    table = found.truth(Shard(0, refs))
    assert table is not None
    assert found.truth_schema is not None
    assert table.schema.equals(found.truth_schema, check_metadata=True)
    return dict(zip((ref.key for ref in refs), table.to_pylist(), strict=True))


def pixels(row: dict[str, Any]) -> list[list[list[int]]]:
    return [coco.decode(one["mask"]).tolist() for one in row["objects"]]


def inside(*masks: NDArray[Any]) -> list[list[list[int]]]:
    return [(mask != 0).astype(int).tolist() for mask in masks]


@pytest.mark.parametrize("between", ["__", "_"])
def test_a_file_an_object_in_a_folder_or_by_the_name(between: str, tmp_path: Path) -> None:
    masks = {f"a{between}0": LEFT, f"a{between}1": RIGHT, f"a_1{between}0": EMPTY, f"a1{between}x": RIGHT}
    found = of(write(tmp_path, "a a1 a_1 b", **masks))
    assert {key: row["objects"] and len(row["objects"]) for key, row in rows(found).items()} == {
        "a.jpg": 2,
        "a1.jpg": 1,
        "a_1.jpg": 1,
        "b.jpg": None,
    }
    row = rows(found)["a.jpg"]
    assert pixels(row) == inside(LEFT, RIGHT)
    assert [(one["label"], one["area"]) for one in row["objects"]] == [("object", 105), ("object", 300)]
    assert row["objects"][0]["box"] == {"x1": 3, "y1": 5, "x2": 10, "y2": 20}
    assert rows(found)["a_1.jpg"]["objects"][0]["area"] == 0  # kept
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("object", 1),)
    require_sound(found, [Shard(0, tuple(found.refs()))])


def test_a_pattern_says_what_masks_are_called(tmp_path: Path) -> None:
    folder = write(tmp_path, "a b", a_mask_0=LEFT, a_mask_1=RIGHT, b_mask_0=RIGHT)
    found = of(folder, "masks/{name}_mask_*.png")
    assert [len(row["objects"]) for row in rows(found).values()] == [2, 1]


def test_a_number_for_each_object(tmp_path: Path) -> None:
    wide = TWO.astype(np.uint16) * 100
    folder = write(tmp_path, "a b c", a=TWO, b=EMPTY, c=wide)
    found = rows(of(folder))
    assert pixels(found["a.jpg"]) == pixels(found["c.jpg"]) == inside(LEFT, RIGHT)
    assert found["b.jpg"]["objects"] == []
    assert pixels(rows(of(folder, ignore=(7,)))["a.jpg"]) == inside(LEFT)


def test_one_class_has_the_name_in_the_list(tmp_path: Path) -> None:
    folder = write(tmp_path, "a", a=TWO)
    (folder / "classes.txt").write_text("nucleus\n")
    assert [one["label"] for one in rows(of(folder))["a.jpg"]["objects"]] == ["nucleus"] * 2


def test_the_class_may_stand_in_the_path_of_a_mask(tmp_path: Path) -> None:
    folder = write(tmp_path, "a b", a__cat_0=LEFT, a__dog_1=RIGHT, b__7=LEFT)
    found = rows(of(folder, label="[^/]+/([a-z]+)_"))
    assert [one["label"] for one in found["a.jpg"]["objects"]] == ["cat", "dog"]
    assert found["b.jpg"]["problem"] == "input.label finds no class in b/7.png; its objects are left out"


def test_pixels_of_a_class_are_one_object_where_values_are_classes(tmp_path: Path) -> None:
    trimap = np.where(LEFT > 0, 1, np.where(RIGHT > 0, 3, 2)).astype(np.uint8)
    folder = write(tmp_path, "a b", a=trimap, b=np.full_like(trimap, 2))
    found = of(folder, relabel={"1": "animal", "3": "animal", "2": None})
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("animal", 1),)
    assert pixels(rows(found)["a.jpg"]) == inside(LEFT.astype(int) + RIGHT)
    assert rows(found)["b.jpg"]["objects"] == []  # all background
    found = of(folder, relabel={"1": "animal", "2": None})
    with pytest.raises(UserError, match=r"(?s)a.png has values which no class has: 3.*input.ignore=\[3\]"):
        require_sound(found, [Shard(0, tuple(found.refs()))])


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"a__0": LEFT, "a__1": RIGHT[:40]}, "its masks are of different sizes, 64 x 48 and others"),
        ({"a__0": LEFT[:, :40]}, "its ground truth is for 40 x 48 pixels, the image has 64 x 48"),
        ({"a__0": np.zeros((48, 64, 3), np.uint8)}, "a/0.png: expected one value a pixel"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    masks: dict[str, NDArray[Any]], words: str, tmp_path: Path
) -> None:
    found = of(write(tmp_path, "a", **masks))
    with pytest.raises(UserError, match=words):
        require_sound(found, [Shard(0, tuple(found.refs()))])


def test_two_files_of_numbers_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "a", a=TWO)
    put(folder / "masks/a.jpg", jpeg(1))
    assert rows(of(folder))["a.jpg"]["problem"] == (
        "it has 2 masks, a.jpg and a.png; its objects are left out"
    )


def test_the_pets(shared: Path) -> None:
    folder = shared / "data" / "pets"
    animal = {"1": "animal", "3": "animal", "2": None}
    found = source(
        f"{folder}/images",
        format="object_masks",
        truth=f"{folder}/trimaps",
        relabel=animal,
        subset={"cut": "turn", "test": 0.2, "validation": 0.0, "part": "test"},
    )
    refs = list(found.refs())
    everything = sorted(path.name for path in (folder / "images").iterdir())
    assert [ref.key for ref in refs] == everything[4::5]
    assert len(refs) == 100
    table = found.truth(Shard(0, tuple(refs[::10])))
    assert table is not None
    for ref, row in zip(refs[::10], table.to_pylist(), strict=True):
        with Image.open(folder / "trimaps" / ref.key.replace(".jpg", ".png")) as image:
            expected = np.asarray(image) != 2
        (one,) = row["objects"]
        assert np.array_equal(coco.decode(one["mask"]), expected)
    whole = source(f"{folder}/images", format="object_masks", truth=f"{folder}/trimaps", relabel=animal)
    bare = [ref for ref in whole.refs() if ref.key == "Abyssinian_34.jpg"]
    nothing = whole.truth(Shard(0, tuple(bare)))
    assert nothing is not None
    assert nothing["objects"].to_pylist() == [[]]
