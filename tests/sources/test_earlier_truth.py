"""What an earlier job answered as ground truth: maps in every form, objects and labels, by key."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cnnbatch.errors import UserError
from cnnbatch.images import class_map
from cnnbatch.output.part import ENGINE_COLUMNS
from cnnbatch.truth import BOX, MAP, MAP_RUNS, MASK, Class, classes_of, ignored_of
from cnnbatch.types import Shard, Source
from tests.conftest import jpeg
from tests.outputs import write_job, write_part
from tests.sourcing import source

NUMBERS = np.repeat(np.array([[0, 2, 255]], np.uint8), 16, axis=1).repeat(48, axis=0)
OBJECTS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32()), ("box", BOX), ("mask", MASK)]))


def output(folder: Path, answer: str, kind: pa.DataType, values: list[Any]) -> str:
    """Write an output of two parts, with an answer for each of 0.jpg, 1.jpg …, None where one failed."""
    schema = pa.schema([*ENGINE_COLUMNS, pa.field(answer, kind)])
    rows = [
        {"key": f"{n}.jpg", "uri": f"/x/{n}.jpg", "width": 48, "height": 48, "vanished": False, answer: value}
        for n, value in enumerate(values)
    ]
    write_job(folder)
    for number in range(2):
        write_part(folder, number, rows[number::2], schema=schema)
    classes = {"names": ["sky", "road", "car"], "ids": [], "aliases": {}}
    (folder / "_job" / "classes.json").write_text(json.dumps(classes))
    return str(folder)


def pictures(folder: Path, *names: str) -> str:
    (folder / "images").mkdir(parents=True)
    for name in names:
        (folder / "images" / name).write_bytes(jpeg(1))
    return str(folder / "images")


def rows(found: Source) -> dict[str, dict[str, Any]]:
    refs = tuple(found.refs())
    table = pickle.loads(pickle.dumps(found)).truth(Shard(0, refs))
    return dict(zip((ref.key for ref in refs), table.to_pylist(), strict=True))


def of_assets(folder: Path) -> list[Any]:
    (folder / "assets/map/part-00000000").mkdir(parents=True)
    address = "assets/map/part-00000000/00000000-0123456789abcdef.png"
    (folder / address).write_bytes(class_map.png(NUMBERS))
    return [address, None, address]


@pytest.mark.parametrize("form", ["png", "rle", "asset"])
def test_maps_in_every_form(form: str, tmp_path: Path) -> None:
    kinds: dict[str, tuple[Any, list[Any]]] = {
        "png": (MAP, [class_map.png(NUMBERS), None, class_map.png(NUMBERS)]),
        "rle": (MAP_RUNS, [class_map.runs(NUMBERS, 3), None, class_map.runs(NUMBERS, 3)]),
        "asset": (pa.string(), []),
    }
    kind, values = kinds[form]
    out = output(tmp_path / "out", "map", kind, values or of_assets(tmp_path / "out"))
    url = pictures(tmp_path, "0.jpg", "1.jpg", "2.jpg", "new.jpg")
    found = source(url, truth=out)
    made = rows(found)
    assert {key: row["map"] is not None for key, row in made.items()} == {
        "0.jpg": True,
        "1.jpg": False,
        "2.jpg": True,
        "new.jpg": False,
    }
    assert np.array_equal(class_map.from_png(made["2.jpg"]["map"]), NUMBERS)
    assert (made["2.jpg"]["width"], made["2.jpg"]["height"]) == (48, 48)
    assert found.truth_schema is not None
    assert classes_of(found.truth_schema) == (Class("sky", 0), Class("road", 1), Class("car", 2))
    assert ignored_of(found.truth_schema) == {255}
    changed = source(url, truth=out, relabel={"car": "road"}, ignore=("sky",))
    assert np.array_equal(
        class_map.from_png(rows(changed)["0.jpg"]["map"]), np.where(NUMBERS == 2, 1, NUMBERS)
    )
    assert changed.truth_schema is not None
    assert classes_of(changed.truth_schema) == (Class("road", 1),)


def test_objects_that_are_sure(tmp_path: Path) -> None:
    box = {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}
    mask = {"size": [48, 48], "counts": "PPP1"}
    sure, unsure = ({"label": "car", "score": score, "box": box, "mask": mask} for score in (0.75, 0.25))
    out = output(tmp_path / "out", "objects", OBJECTS, [[sure, unsure], []])
    url = pictures(tmp_path, "0.jpg", "1.jpg")
    (one,) = rows(source(url, truth=out))["0.jpg"]["objects"]
    assert (one["label"], one["box"], one["mask"], one["score"]) == ("car", box, mask, None)
    assert rows(source(url, truth=out))["1.jpg"]["objects"] == []
    assert len(rows(source(url, truth=out, min_score=0.2))["0.jpg"]["objects"]) == 2


def test_labels(tmp_path: Path) -> None:
    out = output(tmp_path / "out", "label", pa.string(), ["car", "sky"])
    found = source(pictures(tmp_path, "0.jpg", "1.jpg"), truth=out)
    assert [row["label"] for row in rows(found).values()] == ["car", "sky"]


def test_images_of_other_keys_are_refused(tmp_path: Path) -> None:
    out = output(tmp_path / "out", "label", pa.string(), ["car", "sky"])
    with pytest.raises(UserError, match=r"out has none of the first 2 images, such as 'b.jpg'"):
        list(source(pictures(tmp_path, "a.jpg", "b.jpg"), truth=out).refs())


def test_an_output_without_a_ground_truth_is_refused(tmp_path: Path) -> None:
    out = output(tmp_path / "out", "embedding", pa.float32(), [1.0, 2.0])
    with pytest.raises(UserError, match="has nothing to be a ground truth: its columns are key"):
        source(pictures(tmp_path, "0.jpg"), truth=out)


def test_addresses_that_leave_the_output_are_refused(tmp_path: Path) -> None:
    out = output(tmp_path / "out", "map", pa.string(), ["assets/../../secret.png", "/etc/passwd"])
    for name in ("0.jpg", "1.jpg"):
        with pytest.raises(UserError, match="expected the address of an object in the output"):
            rows(source(pictures(tmp_path / name, name), truth=out))
