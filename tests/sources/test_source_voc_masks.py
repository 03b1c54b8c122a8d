"""The masks of a VOC tree: classes by pixel, and objects by the numbers of their pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from cnnbatch.config.input import Input
from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.sources.masks.objects import labels_by_pixels, object_of, objects_in
from cnnbatch.sources.recognition import recognise
from cnnbatch.sources.soundness import require_sound
from cnnbatch.sources.voc.source import VOC_CLASSES
from cnnbatch.storage import Storage
from cnnbatch.truth import Class, classes_of, ignored_of
from cnnbatch.types import Shard, Source
from tests.conftest import jpeg
from tests.sourcing import keys, source

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'

CLASSES = np.zeros((48, 64), np.uint8)
CLASSES[4:20, 4:30] = 15  # a person
CLASSES[10:40, 30:60] = 12  # a dog
CLASSES[20:22, 4:30] = 255
OBJECTS = np.zeros((48, 64), np.uint8)
OBJECTS[4:20, 4:17] = 1
OBJECTS[4:20, 17:30] = 2
OBJECTS[10:40, 30:60] = 3
OBJECTS[20:22, 4:30] = 255


def palette(values: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(values)
    image.putpalette(class_map.colours(256).tobytes())
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def tree(root: Path, **masks: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> Path:
    files = {"JPEGImages/without.jpg": jpeg(9), "Annotations/a.xml": b"<annotation/>"}
    for name, (classes, objects) in masks.items():
        files |= {
            f"JPEGImages/{name}.jpg": jpeg(1),
            f"SegmentationClass/{name}.png": palette(classes),
            f"SegmentationObject/{name}.png": palette(objects),
        }
    files["ImageSets/Segmentation/train.txt"] = "\n".join(masks).encode()
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def rows(found: Source) -> dict[str, dict[str, Any]]:
    refs = tuple(found.refs())
    table = found.truth(Shard(0, refs))
    assert table is not None
    return dict(zip((ref.key for ref in refs), table.to_pylist(), strict=True))


def test_classes_of_pixels_are_vocs_indices(tmp_path: Path) -> None:
    root = tree(tmp_path, a=(CLASSES, OBJECTS))
    assert recognise(Input(url=str(root), truth="SegmentationClass"), Storage()) == "voc"
    found = source(str(root), truth="SegmentationClass")
    assert [*rows(found)] == ["JPEGImages/a.jpg", "JPEGImages/without.jpg"]
    row = rows(found)["JPEGImages/a.jpg"]
    assert row["map"] == (root / "SegmentationClass/a.png").read_bytes()
    assert (row["image_id"], row["width"], row["height"], row["problem"]) == ("a", 64, 48, None)
    assert rows(found)["JPEGImages/without.jpg"]["map"] is None
    assert found.truth_schema is not None
    classes = classes_of(found.truth_schema)
    assert classes == tuple(Class(name, n) for n, name in enumerate(("background", *VOC_CLASSES)))
    assert ignored_of(found.truth_schema) == {255}
    assert keys(str(root), truth="SegmentationClass", split="train") == ["JPEGImages/a.jpg"]
    by_address = source(str(root), truth=f"{root}/SegmentationClass")
    assert rows(by_address) == rows(found)
    require_sound(found, [Shard(0, tuple(found.refs()))])


def test_objects_have_boxes_of_their_masks_and_classes_of_their_pixels(tmp_path: Path) -> None:
    root = tree(tmp_path, a=(CLASSES, OBJECTS))
    found = source(str(root), truth="SegmentationObject", split="train")
    objects = rows(found)["JPEGImages/a.jpg"]["objects"]
    assert [one["label"] for one in objects] == ["person", "person", "dog"]
    assert objects[0]["box"] == {"x1": 4.0, "y1": 4.0, "x2": 17.0, "y2": 20.0}
    assert [one["area"] for one in objects] == [16 * 13, 16 * 13, 30 * 30]
    for number, one in enumerate(objects, 1):
        assert np.array_equal(coco.decode(one["mask"]), number == OBJECTS)
    assert found.truth_schema is not None
    assert [one.name for one in classes_of(found.truth_schema)] == list(VOC_CLASSES)


def test_objects_of_no_class_are_left_out_and_counted(tmp_path: Path) -> None:
    bare = np.where(OBJECTS == 3, 0, CLASSES).astype(np.uint8)
    row = rows(source(str(tree(tmp_path, a=(bare, OBJECTS))), truth="SegmentationObject"))["JPEGImages/a.jpg"]
    assert [one["label"] for one in row["objects"]] == ["person", "person"]
    assert row["problem"] == "1 of its objects is left out: no class in their pixels"


def test_classes_are_relabelled_for_pixels_and_for_objects(tmp_path: Path) -> None:
    root = str(tree(tmp_path, a=(CLASSES, OBJECTS)))
    how: dict[str, Any] = {"relabel": {"dog": "animal", "cat": "animal"}, "ignore": ("person",)}
    of_pixels = source(root, truth="SegmentationClass", **how)
    assert of_pixels.truth_schema is not None
    assert Class("animal", 8) in classes_of(of_pixels.truth_schema)
    assert ignored_of(of_pixels.truth_schema) == {15, 255}
    row = rows(source(root, truth="SegmentationObject", **how))["JPEGImages/a.jpg"]
    assert [one["label"] for one in row["objects"]] == ["animal"]


def test_a_tree_may_have_classes_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path, a=(np.minimum(CLASSES, 2), np.minimum(OBJECTS, 2)))
    label_map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    (root / "labelmap.txt").write_text(label_map)
    found = source(str(root), truth="SegmentationClass")
    assert found.truth_schema is not None
    assert [one.name for one in classes_of(found.truth_schema)] == ["background", "cat", "dog"]
    (root / "SegmentationClass/classes.txt").write_text("nothing\nlion\ntiger\n")
    objects = rows(source(str(root), truth="SegmentationObject"))["JPEGImages/a.jpg"]["objects"]
    assert {one["label"] for one in objects} == {"tiger"}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (CLASSES[:40], "SegmentationClass/a.png is of another size; its objects are left out"),
        (CLASSES + 30, "its mask SegmentationClass/a.png has values which no class has: 29, 30, 42, 45"),
    ],
)
def test_masks_that_do_not_fit_each_other_are_said(
    classes: NDArray[np.uint8], words: str, tmp_path: Path
) -> None:
    row = rows(source(str(tree(tmp_path, a=(classes, OBJECTS))), truth="SegmentationObject"))
    assert row["JPEGImages/a.jpg"]["objects"] is None
    assert row["JPEGImages/a.jpg"]["problem"].startswith(words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"truth": "Masks", "format": "voc"}, "of a VOC tree it is SegmentationClass or SegmentationObject"),
        ({"ignore": (3,)}, "input.ignore: it is for the values of masks, and XML files have none"),
        ({"truth": "SegmentationClass", "split": "tain"}, "there is no list 'tain' .* did you mean 'train'"),
    ],
)
def test_what_can_not_be_asked_of_a_tree_is_said(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    root = tree(tmp_path, a=(CLASSES, OBJECTS))
    with pytest.raises(UserError, match=words):
        list(source(str(root), **fields).refs())


NUMBERS = arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 4))


@given(NUMBERS, st.data())
def test_objects_are_what_each_number_covers(numbers: NDArray[np.uint8], data: st.DataObject) -> None:
    classes = data.draw(arrays(np.uint8, numbers.shape, elements=st.integers(0, 3)))
    names = {1: "a", 2: "b"}
    labels = labels_by_pixels(numbers, classes, names)
    for number in range(5):
        counts = [int(((numbers == number) & (classes == one)).sum()) for one in names]
        assert (number in labels) == any(counts)
        if any(counts):
            assert counts[list(names.values()).index(labels[number])] == max(counts)
    for one in objects_in(numbers, labels):
        assert one == object_of(coco.decode(one["mask"]).astype(bool), one["label"])
    inside = {number: numbers == number for number in labels if (numbers == number).any()}
    assert [coco.decode(one["mask"]).tolist() for one in objects_in(numbers, labels)] == [
        inside[number].tolist() for number in sorted(inside)
    ]
    for one, number in zip(objects_in(numbers, labels), sorted(inside), strict=True):
        down, across = np.nonzero(inside[number])
        box = (across.min(), down.min(), across.max() + 1, down.max() + 1)
        assert tuple(one["box"].values()) == box
        assert one["area"] == inside[number].sum()


def test_an_empty_mask_is_an_object_without_area() -> None:
    one = object_of(np.zeros((3, 5), np.bool_), "cat")
    assert (one["area"], one["box"]) == (0, {"x1": 0, "y1": 0, "x2": 0, "y2": 0})
    assert coco.decode(one["mask"]).tolist() == np.zeros((3, 5)).tolist()
