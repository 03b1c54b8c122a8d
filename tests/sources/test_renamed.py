"""Objects and labels by other names, merged, and left out when the truth is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cnnbatch.errors import UserError
from cnnbatch.evaluation.ground_truths import PlannedImages, ground_truth
from cnnbatch.truth import Class, classes_of
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Shard, Source
from tests.sourcing import fill, source

NAMES = ("person", "car", "lorry", "tree")


def coco(folder: Path, labels: list[list[str]]) -> str:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(len(labels))]
    objects = [
        {"id": 1, "image_id": n, "category_id": NAMES.index(label), "bbox": [1, 2, 3, 4]}
        for n, some in enumerate(labels)
        for label in some
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    fill(folder, [str(one["file_name"]) for one in images])
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "all.json").write_text(json.dumps(content))
    return str(folder / "all.json")


def rows(found: Source, column: str) -> list[Any]:
    table = found.truth(Shard(0, tuple(found.refs())))
    assert table is not None
    assert found.truth_schema is not None
    assert table.schema.equals(found.truth_schema, check_metadata=True)
    return table[column].to_pylist()


def test_objects_are_merged_renamed_and_left_out(tmp_path: Path) -> None:
    path = coco(tmp_path, [["car", "person", "lorry"], ["person"], []])
    found = source(path, relabel={"car": "vehicle", "lorry": "vehicle", "person": None})
    labels = [[one["label"] for one in objects] for objects in rows(found, "objects")]
    assert labels == [["vehicle", "vehicle"], [], []]
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("vehicle", 1), Class("tree", 3))
    regions = source(f"{path}#objects", relabel={"car": "vehicle", "lorry": "vehicle", "person": None})
    assert [ref.columns["label"] for ref in regions.refs()] == ["vehicle", "vehicle"]


@pytest.mark.parametrize("part", [None, {"part": "train", "validation": 0.0, "test": 0.0}])
def test_a_model_has_to_know_the_new_names(tmp_path: Path, part: Any) -> None:
    path = coco(tmp_path, [["car", "person"], ["lorry"]])
    how: dict[str, Any] = {"subset": part} if part else {}
    found = source(path, relabel={"car": "vehicle", "lorry": "vehicle", "person": None}, **how)
    planned = PlannedImages(found, lambda: [Shard(0, tuple(found.refs()))], True, {})
    ground_truth("objects").require_early(ModelClasses(("vehicle",)), planned)
    with pytest.raises(UserError, match="'vehicle'"):
        ground_truth("objects").require_early(ModelClasses(("car", "lorry")), planned)


def test_labels_are_renamed(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/1.jpg", "dog/2.jpg", "tree/3.jpg"])
    found = source(str(tmp_path), format="folders", relabel={"cat": "animal", "dog": "animal", "tree": None})
    assert rows(found, "label") == ["animal", "animal", None]


@pytest.mark.parametrize(
    ("relabel", "words"),
    [
        ({"carr": "x"}, "expected a class of the ground truth, got 'carr'; did you mean car?"),
        ({"car": 3}, "numbers are for the values of masks"),
        ("reduce_zero_label", "numbers are for the values of masks"),
    ],
)
def test_what_objects_can_not_be_called_is_said(relabel: Any, words: str, tmp_path: Path) -> None:
    path = coco(tmp_path, [["car"]])
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        source(path, relabel=relabel)
