from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cnnbatch.truth import LABEL_SCHEMA, MAP_SCHEMA, OBJECTS_SCHEMA, Class, table, with_classes
from cnnbatch.truth.problems import check_sizes, has_other_size

BOX = {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}


def objects(*labels: str | None) -> list[dict[str, Any]]:
    return [{"label": label, "box": BOX} for label in labels]


def truth(*rows: dict[str, Any]) -> pa.Table:
    return table(rows, with_classes(OBJECTS_SCHEMA, [Class("cat", 7)]))


@pytest.mark.parametrize(
    ("stated", "found", "kept"),
    [
        ((40, 30), (40, 30), True),
        ((40, 30), (30, 40), False),
        ((40, 30), (40, 31), False),
        ((40, 30), (41, 30), False),
        ((40, 30), None, True),
        ((None, None), (40, 30), True),
        ((40, None), (41, 30), True),
    ],
)
def test_objects_for_another_size_are_left_out(stated: Any, found: Any, kept: bool) -> None:
    row = {"image_id": "1", "objects": objects("cat"), "width": stated[0], "height": stated[1]}
    before = truth(row, {**row, "width": 9, "height": 9})
    after = check_sizes(before, [found, (9, 9)])
    first, second = after.to_pylist()
    assert second == before.to_pylist()[1]
    if kept:
        assert after is before
    else:
        assert (first["image_id"], first["width"], first["objects"]) == ("1", 40, None)
        assert first["problem"] == (
            f"its ground truth is for 40 x 30 pixels, the image has {found[0]} x {found[1]}; "
            "its objects are left out"
        )
        assert after.schema.equals(before.schema, check_metadata=True)


def test_a_mask_of_another_size_leaves_the_image_s_objects_out() -> None:
    mask = {"size": [30, 40], "counts": "\\`01"}
    row = {"image_id": "1", "objects": [{"label": "cat", "box": BOX, "mask": mask}, *objects("cat")]}
    before = truth(row, row, {"image_id": "3"})
    assert check_sizes(before, [(40, 30), None, (1, 1)]) is before
    after = check_sizes(before, [(30, 40), (40, 30), (1, 1)]).to_pylist()
    problem = "one of its masks is for 40 x 30 pixels, the image has 30 x 40; its objects are left out"
    assert (after[0]["objects"], after[0]["problem"]) == (None, problem)
    assert after[1:] == before.to_pylist()[1:]


def test_labels_have_no_size() -> None:
    labels = table([{"image_id": "1", "label": "cat"}], LABEL_SCHEMA)
    assert check_sizes(labels, [(1, 1)]) is labels
    with pytest.raises(ValueError, match="zip"):
        check_sizes(truth({"image_id": "1"}), [])


def test_maps_of_another_size_are_left_out() -> None:
    row = {"image_id": "1", "map": b"png", "width": 40, "height": 30}
    before = table([row, {"image_id": "2", "problem": "two"}], MAP_SCHEMA)
    assert check_sizes(before, [(40, 30), (1, 1)]) is before
    first, second = check_sizes(before, [(41, 30), (1, 1)]).to_pylist()
    problem = "its ground truth is for 40 x 30 pixels, the image has 41 x 30; its map is left out"
    assert (first["map"], first["problem"]) == (None, problem)
    assert has_other_size(problem)
    assert second == before.to_pylist()[1]
