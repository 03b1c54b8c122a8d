from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.errors import UserError
from cnnbatch.truth import (
    LABEL_SCHEMA,
    MAP_SCHEMA,
    OBJECTS_SCHEMA,
    Class,
    ModelClasses,
    check_sizes,
    classes_of,
    has_other_size,
    match_classes,
    match_map_classes,
    object_labels,
    table,
    with_classes,
    with_new_fields,
)

BOX = {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}


def objects(*labels: str | None) -> list[dict[str, Any]]:
    return [{"label": label, "box": BOX} for label in labels]


def truth(*rows: dict[str, Any]) -> pa.Table:
    return table(rows, with_classes(OBJECTS_SCHEMA, [Class("cat", 7)]))


# Sizes


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


def test_objects_of_an_earlier_version_get_the_fields_that_came_since() -> None:
    now: Any = OBJECTS_SCHEMA.field("objects").type
    earlier = pa.list_(pa.struct([one for one in now.value_type if one.name != "is_thing"]))
    schema = with_classes(OBJECTS_SCHEMA.set(1, pa.field("objects", earlier)), [Class("cat", 7)])
    rows: list[dict[str, Any]] = [{"image_id": "1", "objects": objects("cat")}, {"image_id": "2"}]
    read = with_new_fields(pa.Table.from_pylist(rows, schema))
    assert read.equals(truth(*rows))
    assert classes_of(read.schema) == (Class("cat", 7),)
    assert with_new_fields(read) is read
    labels = table([{"image_id": "1", "label": "cat"}], LABEL_SCHEMA)
    assert with_new_fields(labels) is labels


# Classes


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text(max_size=3)),
        max_size=5,
    )
)
def test_classes_travel_with_a_table(pairs: list[tuple[str, int | str]]) -> None:
    classes = tuple(Class(*pair) for pair in pairs)
    schema = with_classes(OBJECTS_SCHEMA, classes)
    assert classes_of(schema) == classes
    file = io.BytesIO()
    pq.write_table(table([{"image_id": "1"}], schema), file)
    assert classes_of(pq.read_schema(file)) == classes
    assert schema.equals(OBJECTS_SCHEMA)


def test_classes_that_are_not_known() -> None:
    assert classes_of(OBJECTS_SCHEMA) == ()
    assert classes_of(OBJECTS_SCHEMA.with_metadata({"other": "x"})) == ()


def test_labels_of_objects() -> None:
    rows: list[dict[str, Any]] = [
        {"objects": objects("cat", "dog")},
        {"objects": None},
        {},
        {"objects": []},
        {"objects": objects("cat")},
    ]
    assert object_labels(truth(*rows, {"objects": objects(None, "a")})) == ["cat", "dog", "a"]
    assert object_labels(truth()) == []
    assert object_labels(truth({"objects": None})) == []
    assert object_labels(truth(*rows).slice(4)) == ["cat"]
    assert object_labels(pa.concat_tables([truth(*rows), truth(*rows)])) == ["cat", "dog"]


MODEL = ModelClasses(("cat", "", "motorbike", "sofa"), (1, 2, 3, 4), {"motorbike": "motorcycle"})


def test_names_count_before_ids() -> None:
    swapped = [Class("sofa", 1), Class("cat", 4)]
    assert match_classes(MODEL, swapped, {}) == {"sofa": "sofa", "cat": "cat"}
    assert match_classes(MODEL, [Class("motorcycle", 99)], {}) == {"motorcycle": "motorbike"}


def test_ids_count_where_most_are_alike() -> None:
    alike = [Class("cat", 1), Class("motorcycle", 3), Class("couch", 4)]
    assert match_classes(MODEL, alike, {}) == {"cat": "cat", "motorcycle": "motorbike", "couch": "sofa"}
    for other in ([Class("cat", 7), Class("motorcycle", 3), Class("couch", 4)], [Class("couch", 4)]):
        with pytest.raises(UserError, match=r"does not know: 'couch'\n"):
            match_classes(MODEL, other, {})
    with pytest.raises(UserError, match="'nothing'"):
        match_classes(MODEL, [Class("cat", 1), Class("nothing", 2)], {})  # an empty name is no class


def test_one_class_that_is_numbered_alike_says_nothing_of_others() -> None:
    model = ModelClasses(("person", "bicycle", "car", "train"), (1, 2, 3, 7))
    with pytest.raises(UserError, match=r"does not know: 'unicorn'\n"):
        match_classes(model, [Class("person", 1), Class("unicorn", 7)], {})


def test_what_the_job_says_wins() -> None:
    given = {"cat": "sofa", "couch": None}
    assert match_classes(MODEL, [Class("cat", 1), Class("couch", 4)], given) == given
    assert match_classes(MODEL, [], {"x": "y"}) == {}


def test_a_class_that_is_not_known_is_named_as_the_truth_names_it() -> None:
    with pytest.raises(UserError) as error:
        match_classes(MODEL, [Class("divan", 9), Class("sofas", 10), Class("cat", 1)], {"divan": "soffa"})
    first, *rest = str(error.value).split("\n")
    assert first == (
        "the truth has classes that the model does not know: 'divan', called 'soffa' in task.aliases "
        "(the nearest: 'sofa'), 'sofas' (the nearest: 'sofa')"
    )
    assert rest[0] == "  the model's: motorbike, cat, sofa"
    assert rest[1].endswith("'task.aliases={divan: null}'")


# Maps


MAPPED = [Class("background", 0), Class("car", 1), Class("lorry", 2), Class("tree", 3)]


def test_of_maps_the_known_classes_are_matched() -> None:
    model = ModelClasses(("car", "tree", "sky"))
    given = {"lorry": "car", "tree": None}
    assert match_map_classes(model, MAPPED, given) == {"car": "car", "lorry": "car", "tree": None}


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (
            ("sky", "carr"),
            {},
            r"(?s)none of the classes .*: background, car, lorry, tree\n.*the model's: sky, "
            r"carr\n.*'task.aliases=\{car: carr\}'",
        ),
        (("car",), {"car": None}, "none of the classes"),
        (("car",), {"lorry": "cra"}, r"'lorry', called 'cra' in task.aliases \(the nearest: 'car'\)"),
    ],
)
def test_maps_without_a_known_class_are_refused(
    names: tuple[str, ...], given: dict[str, str | None], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        match_map_classes(ModelClasses(names), MAPPED, given)
