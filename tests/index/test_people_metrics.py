"""How well an index tells its people apart: equal to what evaluations of the same embeddings compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import ListedFaces
from cnnbatch.evaluation.face_lists import FacePairList
from cnnbatch.evaluation.recognition import judge_pairs
from cnnbatch.index import people as people_module
from cnnbatch.metrics import embeddings
from tests.embedded import build, of_faces, of_pictures, people, photo, picture, space, write_pictures
from tests.outputs import write_job, write_part

COUNT, EACH = 120, 6
NAMES = [f"p{number // EACH:03}" for number in range(COUNT)]


def vectors() -> np.ndarray:
    """Return embeddings that an index keeps exactly: float16 whose length is 1 but for rounding."""
    return people(COUNT, each=EACH, seed=3).astype(np.float16).astype(np.float32)


def write_named(folder: Path, count: int = COUNT, schema: Any = None) -> Path:
    """Write an output of pictures in a folder a person; the person is a column, too."""
    write_job(folder, text="kind: map\ntask: {name: embed}\ninput: {url: %s}\noutput: {url: %s}\n")
    rows = [
        picture(f"{name}/{place}.jpg", vector, country=name if place % 4 else None)
        for place, (name, vector) in enumerate(zip(NAMES, vectors(), strict=True))
    ][:count]
    write_part(folder, 0, rows, schema=schema or of_pictures(space()))
    return folder


def metrics(index: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((index / "evaluation.json").read_text())["metrics"]
    return found


def stored() -> np.ndarray:
    """Return the vectors as an index has them."""
    unit = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    return np.asarray(unit.astype(np.float16), np.float32)


def test_the_numbers_are_those_of_the_metric_of_embeddings(tmp_path: Path) -> None:
    build(write_named(tmp_path / "out"), tmp_path / "index", index={"people": "folder"})
    keys = [f"{name}/{place}.jpg" for place, name in enumerate(NAMES)]
    expected = embeddings.result(embeddings.partial(stored(), NAMES, keys, "cosine")).metrics
    found = metrics(tmp_path / "index")
    assert {"EER", "AUC", "TAR@FAR=1e-3", "pairs"} <= expected.keys() <= found.keys()
    for name, value in expected.items():
        assert found[name]["count"] == value.count, name
        assert found[name].get("reason") == value.reason, name
        for field in ("value", "low", "high"):
            known = getattr(value, field)
            assert found[name][field] == (None if known is None else pytest.approx(known, rel=1e-9)), name
    assert 0 < found["EER"]["low"] < found["EER"]["value"] < found["EER"]["high"] < 0.5


def test_the_numbers_are_those_of_an_evaluation_by_a_list_of_all_pairs(tmp_path: Path) -> None:
    build(write_named(tmp_path / "out"), tmp_path / "index", index={"people": "folder"})
    first, second = np.triu_indices(COUNT, 1)
    keys = [f"{name}/{place}.jpg" for place, name in enumerate(NAMES)]
    listed = FacePairList(
        [keys[place] for place in first],
        [keys[place] for place in second],
        [NAMES[one] == NAMES[other] for one, other in zip(first, second, strict=True)],
        None,
    )
    places = np.array([keys.index(file) for file in listed.files])
    faces = ListedFaces(
        stored()[places], np.zeros(COUNT, np.int32), np.arange(COUNT + 1), "cosine", np.arange(COUNT)
    )
    expected, found = judge_pairs(listed, faces).whole.metrics, metrics(tmp_path / "index")
    for name in ("EER", "AUC", "TAR@FAR=1e-1", "TAR@FAR=1e-2", "TAR@FAR=1e-3"):
        assert found[name]["value"] == pytest.approx(expected[name].value, abs=1e-6), name


def test_people_may_be_a_column_and_who_has_no_name_is_left_out(tmp_path: Path) -> None:
    build(write_named(tmp_path / "out"), tmp_path / "index", index={"people": "country", "keep": ["country"]})
    named = [place for place in range(COUNT) if place % 4]
    keys = [f"{NAMES[place]}/{place}.jpg" for place in named]
    partial = embeddings.partial(stored()[named], [NAMES[place] for place in named], keys, "cosine")
    expected = embeddings.result(partial).metrics["EER"]
    found = metrics(tmp_path / "index")["EER"]
    assert (found["value"], found["count"]) == (pytest.approx(expected.value), 90 * 89 // 2)


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_named(tmp_path / "out")
    build(out, tmp_path / "one", index={"people": "folder"})
    monkeypatch.setattr(people_module, "_BLOCK", 7)
    build(out, tmp_path / "two", index={"people": "folder"})
    assert metrics(tmp_path / "one")["EER"] == metrics(tmp_path / "two")["EER"]


def test_of_faces_the_largest_of_a_picture_counts(tmp_path: Path) -> None:
    write_job(tmp_path / "out", text="kind: map\ntask: {name: faces}\ninput: {url: %s}\noutput: {url: %s}\n")
    rows = [
        photo(f"{name}/{place}.jpg", [-vector, vector])
        for place, (name, vector) in enumerate(zip(NAMES, vectors(), strict=True))
    ]
    for row in rows:
        row["objects"][1]["box"]["x2"] += 20
    write_part(tmp_path / "out", 0, rows, schema=of_faces(space()))
    build(tmp_path / "out", tmp_path / "faces", index={"people": "folder"})
    build(write_named(tmp_path / "pictures"), tmp_path / "index", index={"people": "folder"})
    assert metrics(tmp_path / "faces")["EER"] == metrics(tmp_path / "index")["EER"]


def test_they_are_measured_again_when_the_index_has_grown_by_a_tenth_or_names_others(tmp_path: Path) -> None:
    out, index = write_named(tmp_path / "out", 100), tmp_path / "index"
    build(out, index, index={"keep": ["country"]})
    assert "EER" not in metrics(index)
    build(out, index, index={"people": "folder"})  # Nothing else is new.
    assert metrics(index)["pairs"]["value"] == 100 * 99 / 2
    more = write_pictures(tmp_path / "more", people(9, seed=8), name="m")
    build([out, more], index)  # Which does not name people: the index does.
    assert metrics(index)["pairs"]["value"] == 100 * 99 / 2
    assert cnnbatch.open(index).manifest.verification.rows == 100
    even_more = write_pictures(tmp_path / "even", people(9, seed=9), name="e")
    build([out, more, even_more], index)
    assert cnnbatch.open(index).manifest.verification.rows == 118
    build(out, index, index={"people": "country"})
    assert metrics(index)["EER"]["count"] > 0
    assert cnnbatch.open(index).manifest.verification.people == "country"


def test_pictures_that_name_nobody_have_a_reason_in_place_of_numbers(tmp_path: Path) -> None:
    build(write_pictures(tmp_path / "out", people(20)), tmp_path / "index", index={"people": "folder"})
    assert metrics(tmp_path / "index")["EER"] == {
        "value": None,
        "low": None,
        "high": None,
        "count": 0,
        "reason": "no picture lies in a folder",
    }


def test_a_column_that_the_index_does_not_keep_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = write_named(tmp_path / "out")
    with pytest.raises(UserError, match=r"index.people: the index keeps no column 'contry', but country"):
        build(out, tmp_path / "index", index={"people": "contry", "keep": ["country"]})
    assert not (tmp_path / "index" / "manifest.json").exists()
    assert not (tmp_path / "index" / "segments").exists()
