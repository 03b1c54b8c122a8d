"""Building an index and adding to it: whatever the way to a state, its answers are those of brute force."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cnnbatch
from cnnbatch.index.manifest import Manifest, read_manifest
from cnnbatch.index.objects import unnamed
from cnnbatch.index.search import Index
from cnnbatch.storage import Storage
from tests.embedded import (
    Vectors,
    build,
    nearest,
    of_faces,
    of_pictures,
    people,
    photo,
    picture,
    space,
    write_pictures,
)
from tests.outputs import write_job, write_part

K = 5


def opened(place: Path) -> Index:
    found = cnnbatch.open(place)
    assert isinstance(found, Index)
    return found


def manifest(place: Path) -> Manifest:
    found = read_manifest(str(place), Storage())
    assert found is not None
    return found[0]


def ids(place: Path, queries: Vectors, k: int = K, where: str | None = None) -> list[list[str]]:
    rows = opened(place).search(queries, k, where).to_pylist()
    return [[row["id"] for row in rows if row["query"] == number] for number in range(len(queries))]


def true_ids(
    queries: Vectors, vectors: Vectors, names: list[str] | None = None, k: int = K
) -> list[list[str]]:
    names = names or [f"p{number:06}.jpg" for number in range(len(vectors))]
    return [[names[row] for row in line] for line in nearest(queries, vectors, k)]


def segment_files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "segments").iterdir()}


def answers(place: Path, queries: Vectors) -> pa.Table:
    return opened(place).search(queries, 10).drop_columns(["output"])


def test_a_small_index_is_searched_exactly(tmp_path: Path) -> None:
    vectors, queries = people(200), people(9, seed=4)
    summary = build(write_pictures(tmp_path / "out", vectors), tmp_path / "index")
    assert (summary.images, summary.total, summary.exit_status) == (200, 200, 0)
    state = manifest(tmp_path / "index")
    assert state.codebook is None
    assert [one.rows for one in state.segments] == [64, 64, 64, 8]
    assert ids(tmp_path / "index", queries) == true_ids(queries, vectors)
    found = opened(tmp_path / "index").search(vectors[:1], 1).to_pylist()[0]
    assert found["key"] == "p000000.jpg"
    assert found["similarity"] == pytest.approx(1, abs=1e-3)
    assert (found["output"], found["part"], found["row"]) == (str(tmp_path / "out"), 0, 0)
    evaluation = json.loads((tmp_path / "index" / "evaluation.json").read_text())
    assert evaluation["metrics"]["recall@10"]["reason"].startswith("every search compares all")
    assert evaluation["metrics"]["bytes"]["value"] == sum(
        map(len, segment_files(tmp_path / "index").values())
    )


def test_a_large_one_is_searched_by_codes_and_its_recall_is_measured(tmp_path: Path) -> None:
    vectors, queries = people(1500), people(200, seed=4)
    build(write_pictures(tmp_path / "out", vectors, each=100), tmp_path / "index", index={"match": 0.5})
    state = manifest(tmp_path / "index")
    assert state.codebook is not None
    assert state.recall is not None
    assert state.recall.at_10 >= 0.98
    found, true = ids(tmp_path / "index", queries), true_ids(queries, vectors)
    shares = [len({*a} & {*b}) / K for a, b in zip(found, true, strict=True)]
    assert np.mean(shares) > 0.97
    metrics = json.loads((tmp_path / "index" / "evaluation.json").read_text())["metrics"]
    assert metrics["recall@10"]["value"] == state.recall.at_10
    assert metrics["recall_of_matches"]["value"] >= 0.98
    many = np.concatenate([queries] * 5)  # so many are compared with all vectors
    assert ids(tmp_path / "index", many)[-200:] == true


@pytest.mark.slow
def test_the_same_segments_whatever_the_number_of_workers(tmp_path: Path) -> None:
    write_pictures(tmp_path / "out", people(700))
    build(tmp_path / "out", tmp_path / "one")
    build(tmp_path / "out", tmp_path / "two", compute={"pool": "local", "workers": 2})
    assert segment_files(tmp_path / "one") == segment_files(tmp_path / "two")
    assert manifest(tmp_path / "one").codebook == manifest(tmp_path / "two").codebook


def test_nothing_new_is_nothing_written(tmp_path: Path) -> None:
    write_pictures(tmp_path / "out", people(100))
    build(tmp_path / "out", tmp_path / "index")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")}
    assert build(tmp_path / "out", tmp_path / "index").images == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")} == before


def test_parts_that_come_later_are_added_and_nothing_else_is_touched(tmp_path: Path) -> None:
    vectors, queries = people(1000), people(9, seed=4)
    write_pictures(tmp_path / "all", vectors)
    write_pictures(tmp_path / "out", vectors[:900])
    build(tmp_path / "out", tmp_path / "index")
    before = segment_files(tmp_path / "index")
    for part in range(36, 40):
        name = f"predictions/part-{part:08}.parquet"
        shutil.copy(tmp_path / "all" / name, tmp_path / "out" / name)
    assert build(tmp_path / "out", tmp_path / "index").images == 100
    after = segment_files(tmp_path / "index")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    found, true = ids(tmp_path / "index", queries), true_ids(queries, vectors)
    assert np.mean([len({*a} & {*b}) / K for a, b in zip(found, true, strict=True)]) > 0.95


def test_an_index_that_grows_gets_codes_and_answers_as_one_build_with_that_codebook(tmp_path: Path) -> None:
    vectors, queries = people(700), people(9, seed=4)
    write_pictures(tmp_path / "one", vectors[:300], name="a")
    write_pictures(tmp_path / "two", vectors[300:], name="b")
    build(tmp_path / "one", tmp_path / "index")
    assert manifest(tmp_path / "index").codebook is None
    build(tmp_path / "two", tmp_path / "index")
    state = manifest(tmp_path / "index")
    assert state.codebook is not None
    assert [one.url for one in state.outputs] == [str(tmp_path / name) for name in ("one", "two")]
    names = [f"a{n:06}.jpg" for n in range(300)] + [f"b{n:06}.jpg" for n in range(400)]
    found, true = ids(tmp_path / "index", queries), true_ids(queries, vectors, names)
    assert np.mean([len({*a} & {*b}) / K for a, b in zip(found, true, strict=True)]) > 0.95
    for order in (("one", "two"), ("two", "one")):
        for name in order:
            build(tmp_path / name, tmp_path / "-".join(order))
    a, b = (answers(tmp_path / name, vectors[::70]) for name in ("one-two", "two-one"))
    assert a.num_rows == b.num_rows == 100


def test_with_one_codebook_the_answers_do_not_depend_on_how_an_index_grew(tmp_path: Path) -> None:
    vectors = people(900)
    write_pictures(tmp_path / "all", vectors)
    write_pictures(tmp_path / "out", vectors[:600])
    build(tmp_path / "out", tmp_path / "grown")
    for part in range(24, 36):
        name = f"predictions/part-{part:08}.parquet"
        shutil.copy(tmp_path / "all" / name, tmp_path / "out" / name)
        build(tmp_path / "out", tmp_path / "grown")
    build(tmp_path / "out", tmp_path / "whole")
    whole, grown = manifest(tmp_path / "whole"), manifest(tmp_path / "grown")
    assert len(grown.segments) > len(whole.segments)
    queries = people(30, seed=8)
    exact = [opened(tmp_path / name).search(np.tile(queries, (40, 1)), 10) for name in ("whole", "grown")]
    assert exact[0].drop_columns(["output"]) == exact[1].drop_columns(["output"])


def rewrite(out: Path, part: int, rows: list[dict[str, Any]]) -> None:
    write_part(out, part, rows, schema=of_pictures(space()))


def test_rows_that_change_vanish_or_come_in_a_known_part_follow(tmp_path: Path) -> None:
    vectors, out, place = people(100), tmp_path / "out", tmp_path / "index"
    write_pictures(out, vectors, each=20)
    build(out, place)
    changed = vectors.copy()
    changed[41] = people(1, seed=77)[0]
    rows = [picture(f"p{number:06}.jpg", changed[number]) for number in range(40, 60)]
    rows[5]["vanished"] = True
    rows[6] = picture("p000046.jpg", None)
    rewrite(out, 2, rows)
    summary = build(out, place)
    assert summary.found == {"new": 1, "gone": 3}
    kept = [number for number in range(100) if number not in (45, 46)]
    names = [f"p{number:06}.jpg" for number in kept]
    queries = np.concatenate([people(9, seed=4), changed[41:42]])
    assert ids(place, queries) == true_ids(queries, changed[kept], names)
    assert (len(opened(place)), build(out, place).images) == (98, 0)


def test_a_part_that_is_written_anew_with_the_same_rows_changes_nothing(tmp_path: Path) -> None:
    vectors, out, place = people(60), tmp_path / "out", tmp_path / "index"
    write_pictures(out, vectors, each=20)
    build(out, place)
    before = segment_files(place)
    rewrite(out, 1, [picture(f"p{number:06}.jpg", vectors[number]) for number in range(20, 40)])
    assert build(out, place).found == {"new": 0, "gone": 0}
    assert segment_files(place) == before


def test_rows_that_come_back_as_they_were_are_found_again(tmp_path: Path) -> None:
    vectors, out, place = people(40), tmp_path / "out", tmp_path / "index"
    write_pictures(out, vectors, each=20)
    build(out, place)
    part = out / "predictions" / "part-00000001.parquet"
    data, status = part.read_bytes(), part.stat()
    rewrite(out, 1, [picture(f"p{n:06}.jpg", vectors[n], vanished=True) for n in range(20, 40)])
    assert build(out, place).found == {"new": 0, "gone": 20}
    with part.open("r+b") as file:  # the same file as before, with its etag, as a bucket gives it
        file.truncate(0)
        file.write(data)
    os.utime(part, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert build(out, place).found == {"new": 20, "gone": 0}
    assert ids(place, people(5, seed=4)) == true_ids(people(5, seed=4), vectors)
    part.unlink()
    assert build(out, place).found == {"new": 0, "gone": 20}
    assert len(opened(place)) == 20


def test_a_kept_column_that_changes_follows(tmp_path: Path) -> None:
    vectors, out, place = people(40), tmp_path / "out", tmp_path / "index"
    write_pictures(out, vectors, each=20)
    build(out, place)
    rows = [picture(f"p{number:06}.jpg", vectors[number]) for number in range(20, 40)]
    rows[3]["country"] = "IS"
    rewrite(out, 1, rows)
    assert build(out, place).found == {"new": 1, "gone": 1}
    assert ids(place, vectors[:1], 3, "country = 'IS'") == [["p000023.jpg"]]


def test_every_face_is_a_row_with_its_box(tmp_path: Path) -> None:
    vectors, out = people(12), tmp_path / "out"
    write_job(out)
    rows = [
        photo("a.jpg", vectors[:3]),
        photo("none.jpg", []),
        {**photo("failed.jpg", []), "objects": None},
        photo("b.jpg", vectors[3:11]),
        photo("gone.jpg", vectors[11:], vanished=True),
    ]
    write_part(out, 0, rows, schema=of_faces(space()))
    build(out, tmp_path / "index", index={"segment_rows": 4, "keep": ["country"]})
    names = [f"a.jpg#{n}" for n in range(3)] + [f"b.jpg#{n}" for n in range(8)]
    assert ids(tmp_path / "index", vectors) == true_ids(vectors, vectors[:11], names)
    row = opened(tmp_path / "index").search(vectors[4], 1).to_pylist()[0]
    assert (row["id"], row["key"], row["row"]) == ("b.jpg#1", "b.jpg", 3)
    assert row["box"] == {"x1": 10.0, "y1": 5.0, "x2": 18.0, "y2": 13.0}
    assert "year" not in row


def test_a_face_that_changes_takes_its_whole_photo_along(tmp_path: Path) -> None:
    vectors, out, place = people(6), tmp_path / "out", tmp_path / "index"
    write_job(out)
    write_part(out, 0, [photo("a.jpg", vectors[:2]), photo("b.jpg", vectors[2:4])], schema=of_faces(space()))
    build(out, place, index={"keep": []})
    write_part(out, 0, [photo("a.jpg", vectors[:2]), photo("b.jpg", vectors[3:5])], schema=of_faces(space()))
    assert build(out, place).found == {"new": 2, "gone": 2}
    names = ["a.jpg#0", "a.jpg#1", "b.jpg#0", "b.jpg#1"]
    assert ids(place, vectors, 4) == true_ids(vectors, vectors[[0, 1, 3, 4]], names, 4)


def test_compaction_keeps_the_answers_and_removes_the_bytes(tmp_path: Path) -> None:
    from cnnbatch.index.compact import compact_index

    vectors, out, place = people(600), tmp_path / "out", tmp_path / "index"
    write_pictures(out, vectors, each=20)
    build(out, place)
    rewrite(out, 2, [picture(f"p{n:06}.jpg", vectors[n], vanished=n < 50) for n in range(40, 60)])
    build(out, place)
    write_pictures(tmp_path / "more", people(30, seed=3), name="m")
    build(tmp_path / "more", place)
    queries = people(9, seed=4)
    opened(place).search(queries)
    stored = (vectors[45] / np.linalg.norm(vectors[45].astype(np.float64))).astype(np.float16).tobytes()
    assert any(stored in data for data in segment_files(place).values())
    before = answers(place, queries)
    assert [*compact_index(str(place))][1].startswith("10 rows removed")
    assert answers(place, queries) == before
    assert all(stored not in data for data in segment_files(place).values())
    assert [*unnamed(str(place), Storage(), manifest(place))] == []
    assert build(out, place).images == 0


def test_a_condition_comes_before_the_ranking(tmp_path: Path) -> None:
    vectors, out = people(700), tmp_path / "out"
    write_pictures(out, vectors)
    build(out, tmp_path / "index")
    rows = [picture(f"p{number:06}.jpg", None) for number in range(700)]
    conditions: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
        ("country = 'DE' and year < 2018", lambda row: row["country"] == "DE" and row["year"] < 2018),
        ("year >= 2015", lambda row: True),
        ("key < 'p000010'", lambda row: row["key"] < "p000010"),
        ("country = 'XX'", lambda row: False),
    ]
    for text, fits in conditions:
        chosen = [number for number, one in enumerate(rows) if fits(one)]
        names = [rows[number]["key"] for number in chosen]
        queries = np.tile(people(4, seed=4), (260, 1))  # so many are compared exactly
        assert ids(tmp_path / "index", queries, K, text)[:4] == true_ids(queries[:4], vectors[chosen], names)


def test_parts_of_single_pictures_train_a_codebook_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "out", people(600), each=2)
    build(tmp_path / "out", tmp_path / "index")
    assert manifest(tmp_path / "index").codebook is not None


def test_a_part_without_any_embedding_adds_nothing(tmp_path: Path) -> None:
    vectors, out, place = people(40), tmp_path / "out", tmp_path / "index"
    write_pictures(out, vectors, each=20)
    rewrite(out, 2, [picture(f"x{number}.jpg", None) for number in range(5)])
    rewrite(out, 3, [picture(f"y{number}.jpg", vectors[number], vanished=True) for number in range(5)])
    assert build(out, place).images == 40
    assert ids(place, people(5, seed=4)) == true_ids(people(5, seed=4), vectors)
    rewrite(out, 3, [picture(f"y{number}.jpg", vectors[number]) for number in range(5)])
    assert build(out, place).found == {"new": 5, "gone": 0}


def test_rows_are_looked_up_alike_whether_few_or_many(tmp_path: Path) -> None:
    write_pictures(tmp_path / "out", people(300))
    build(tmp_path / "out", tmp_path / "index")
    copy = opened(tmp_path / "index")._copy(False)
    numbers = np.random.default_rng(0).integers(0, 300, 1000)
    many = copy.rows(numbers)
    assert many["id"].to_pylist() == [f"p{number:06}.jpg" for number in numbers]
    for start in (0, 200, 400):
        assert copy.rows(numbers[start : start + 200]) == many.slice(start, 200)
