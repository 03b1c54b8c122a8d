from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.truth import (
    LABEL_SCHEMA,
    OBJECTS_SCHEMA,
    Class,
    classes_of,
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
