"""Calibrating an index: whose pictures are compared, pairs by lists and by people, what is kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_lists import FacePairList
from cnnbatch.index import known_pairs
from cnnbatch.index.by_size import AtSize, Missed
from cnnbatch.index.calibrated import NAME, Calibrated, put_calibrated, read_calibrated
from cnnbatch.index.calibration import Calibration, Threshold
from cnnbatch.index.known_pairs import pairs_of_list, pairs_of_people
from cnnbatch.index.local_copy import LocalCopy
from cnnbatch.index.named_pictures import FOLDER, named_pictures
from cnnbatch.storage import Storage
from tests.embedded import people

Box = tuple[float, float, float, float]


def copy_of(keys: list[str], boxes: list[Box | None], live: list[int] | None = None) -> LocalCopy:
    """Return a copy of an index of one segment."""
    corners = [
        None if box is None else dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in boxes
    ]
    kind = pa.struct([(name, pa.float32()) for name in ("x1", "y1", "x2", "y2")])
    ids = [f"{key}#{place}" for place, key in enumerate(keys)]
    shown = [f"P{key[0]}" if key[0] != "x" else None for key in keys]
    table = pa.table({"id": ids, "key": keys, "box": pa.array(corners, kind), "who": shown})
    vectors = people(len(keys), dimensions=8).astype(np.float16)
    rows = np.arange(len(keys)) if live is None else np.array(live)
    return LocalCopy(vectors, None, rows, (table,), np.array([0, len(keys)]))


SMALL, LARGE = (0.0, 0.0, 5.0, 5.0), (10.0, 10.0, 40.0, 20.0)
KEYS = ["a/1.jpg", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/1.jpg", "x.jpg", "c/1.jpg"]
BOXES: list[Box | None] = [SMALL, LARGE, SMALL, LARGE, SMALL, None, LARGE]


def test_of_each_picture_its_largest_face_counts() -> None:
    named = named_pictures(copy_of(KEYS, BOXES), ["who"], FOLDER)
    assert named.rows.tolist() == [1, 2, 3, 5, 6]
    assert named.keys == ["a/1.jpg", "a/2.jpg", "b/1.jpg", "x.jpg", "c/1.jpg"]
    a, again, b, nobody, c = named.people.tolist()
    assert a == again
    assert len({a, b, c, 0}) == 4
    assert nobody == 0  # It lies in no folder.


def test_rows_that_are_gone_do_not_count() -> None:
    named = named_pictures(copy_of(KEYS, BOXES, live=[0, 2, 3, 4, 6]), [], FOLDER)
    assert named.rows.tolist() == [0, 2, 3, 6]


def test_people_may_be_a_column_and_another_one_is_refused() -> None:
    by_column = named_pictures(copy_of(KEYS, BOXES), ["who"], "who")
    assert by_column.people[3] == 0
    assert by_column.people[0] == by_column.people[1] != by_column.people[2]
    with pytest.raises(UserError, match=r"the index keeps no column 'whom', but who"):
        named_pictures(copy_of(KEYS, BOXES), ["who"], "whom")


def test_all_pairs_of_named_people_are_compared() -> None:
    copy = copy_of(KEYS, BOXES)
    named = named_pictures(copy, [], FOLDER)
    pairs = pairs_of_people(copy, named).pairs
    chosen = {1: "a", 2: "a", 3: "b", 6: "c"}
    expected = sorted(
        (one == other, float(copy.vectors[i].astype(np.float64) @ copy.vectors[j].astype(np.float64)))
        for (i, one), (j, other) in combinations(chosen.items(), 2)
    )
    found = sorted(zip(pairs.same.tolist(), pairs.scores.tolist(), strict=True))
    assert np.allclose(np.array(found, float), np.array(expected, float), atol=1e-6)


def test_whole_people_are_taken_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{person:03}/{place}.jpg" for person in range(40) for place in range(5)]
    copy = copy_of(keys, [None] * len(keys))
    monkeypatch.setattr(known_pairs, "MOST", 23)
    monkeypatch.setattr(known_pairs, "EACH", 4)
    pairs = pairs_of_people(copy, named_pictures(copy, [], FOLDER)).pairs
    assert len(pairs.scores) == 20 * 19 / 2  # Five whole people, of whom four pictures each count.
    assert pairs.same.sum() == 5 * 6


def test_pairs_of_a_list_are_found_by_the_ends_of_paths_and_others_fail() -> None:
    copy = copy_of(KEYS, BOXES)
    named = named_pictures(copy, [], None)
    first = ["faces/a/1.jpg"] * 3
    listed = FacePairList(first, ["a/2.jpg", "lfw/b/1.jpg", "d/1.jpg"], [True, False, False], None)
    found = pairs_of_list(copy, named, listed, "INDEX")
    assert (found.first.tolist(), found.second.tolist()) == ([1, 1, 1], [2, 3, -1])
    expected = [copy.vectors[1] @ copy.vectors[2], copy.vectors[1] @ copy.vectors[3], np.nan]
    np.testing.assert_allclose(found.pairs.scores, expected, atol=2e-3)  # The sums above are of float16.
    both = FacePairList(
        [*first, "a/2.jpg"],
        ["a/2.jpg", "lfw/b/1.jpg", "other/a/1.jpg", "b/1.jpg"],
        [True, False, False, False],
        None,
    )
    scores = pairs_of_list(copy, named, both, "INDEX").pairs.scores
    # Two files may be a/1.jpg: neither is taken for it.
    assert np.isnan(scores).tolist() == [True, True, True, False]
    with pytest.raises(UserError, match=r"INDEX has no pair of the list .* as e/1.jpg and f/1.jpg"):
        pairs_of_list(copy, named, FacePairList(["e/1.jpg"], ["f/1.jpg"], [True], None), "INDEX")


def calibrated(rows: int = 1000) -> Calibrated:
    """Return a calibration of two sizes."""
    line = Calibration(30.0, -10.0, 100, 900, 0, 0.1, (Threshold(1e-2, 0.4, 0.3, 0.5),))
    sizes = [
        AtSize(rows, Threshold(0.1, 0.6, 0.5, 0.7), Missed(0.2, 0.1, 0.3, 50)),
        AtSize(rows // 2, Threshold(0.1, 0.5, 0.4, 0.6), Missed(0.1, 0.0, 0.2, 50)),
        AtSize(rows, Threshold(1e-3, None, reason="too few"), Missed(None, None, None, 50)),
    ]
    return Calibrated(rows, {"network": "net"}, line, tuple(sizes))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    storage, index = Storage(), tmp_path.as_uri()
    space = calibrated().space
    assert read_calibrated(index, storage, space) is None
    put_calibrated(index, storage, calibrated())
    assert read_calibrated(index, storage, space) == calibrated()
    with pytest.raises(UserError, match=r"embeddings of net, and the index has those of other"):
        read_calibrated(index, storage, {"network": "other"})
    (tmp_path / NAME).write_text('{"rows": "many"}')
    with pytest.raises(UserError, match=r"calibration.json .*damaged"):
        read_calibrated(index, storage, space)


def test_a_search_takes_the_threshold_of_the_least_gallery_that_is_as_large() -> None:
    found = calibrated()
    assert found.search_threshold(0.1, 400).similarity == 0.5
    assert found.search_threshold(0.1, 501).similarity == 0.5
    assert found.search_threshold(0.1, 700).similarity == 0.6
    assert found.search_threshold(0.1, 1_100).similarity == 0.6


def test_a_threshold_that_was_not_measured_says_what_to_do() -> None:
    found = calibrated()
    grown = found.search_threshold(0.1, 1_101)
    assert grown.similarity is None
    assert str(grown.reason).startswith(
        "searches were calibrated with 1,000 embeddings, and now there are 1,101"
    )
    assert found.search_threshold(1e-3, 900).reason == "too few"
    assert (
        found.search_threshold(0.2, 900).reason
        == "searches are calibrated at the rates 0.1, 0.001, not at 0.2"
    )
    nothing = Calibrated(10, {}, found.pairs)
    assert "--absent" in str(nothing.search_threshold(0.1, 10).reason)


def test_what_is_extrapolated_decides_nothing() -> None:
    one = calibrated()
    larger = AtSize(8000, Threshold(0.1, 0.9), Missed(0.5, 0.4, 0.6, 50), 4000, None, is_extrapolated=True)
    found = replace(one, sizes=(*one.sizes, larger))
    assert found.search_threshold(0.1, 5_000).similarity is None
    assert found.search_threshold(0.1, 700).similarity == 0.6


def test_a_gallery_of_more_people_than_were_searched_needs_a_larger_one() -> None:
    one = calibrated()
    sizes = [replace(size, people=size.rows // 10) for size in one.sizes]
    found = replace(one, sizes=tuple(sizes))
    assert found.search_threshold(0.1, 400, 50).similarity == 0.5
    assert found.search_threshold(0.1, 400, 56).similarity == 0.6
    outgrown = found.search_threshold(0.1, 400, 111)
    assert outgrown.similarity is None
    assert str(outgrown.reason).startswith(
        "searches were calibrated with 1,000 embeddings of 100 people, and now there are 400 of 111 people"
    )
