"""Verification and identification of an output's embeddings by lists, against direct computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnbatch.config.output import Evaluate
from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import ListedFaces
from cnnbatch.evaluation.face_lists import FacePairList, PeopleList, read_face_list
from cnnbatch.evaluation.recognition import _scores, judge_pairs, judge_people
from cnnbatch.storage import Storage


def faces_of(vectors: list[list[list[float]]], metric: Any = "euclidean") -> ListedFaces:
    """Return the faces of pictures, each given as the vectors of its faces."""
    flat = [one for some in vectors for one in some]
    return ListedFaces(
        np.array(flat, np.float32).reshape(len(flat), -1 if flat else 1),
        np.array([number for some in vectors for number in range(len(some))], np.int32),
        np.cumsum([0, *(len(some) for some in vectors)]),
        metric,
        10 + np.arange(len(vectors)),
    )


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "list.csv"
    path.write_text(text)
    return str(path)


def test_pairs_with_folds_are_read(tmp_path: Path) -> None:
    found = read_face_list(
        written(tmp_path, "fold,a,b,same\n1,p/1.jpg,p/2.jpg,1\n2,p/1.jpg,q/1.jpg,False\n"), Storage()
    )
    assert isinstance(found, FacePairList)
    assert (found.first, found.second) == (["p/1.jpg", "p/1.jpg"], ["p/2.jpg", "q/1.jpg"])
    assert (found.same, found.folds) == ([True, False], [0, 1])
    assert found.files == ["p/1.jpg", "p/2.jpg", "q/1.jpg"]
    assert found.people() == {"p/1.jpg": "p", "p/2.jpg": "p", "q/1.jpg": "q"}


def test_other_files_are_no_lists_of_faces(tmp_path: Path) -> None:
    assert read_face_list(written(tmp_path, "path,label\na.jpg,cat\n"), Storage()) is None
    assert read_face_list(str(tmp_path / "instances.json"), Storage()) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,same\nx.jpg,,1\n", "line 2: expected a value in the column b"),
        ("a,b,same\nx.jpg,y.jpg,perhaps\n", "line 2: expected 1 or 0 in the column same, got 'perhaps'"),
        ("a,b,same,fold\nx.jpg,y.jpg,1,-3\n", "whole number from 0 to 32767"),
        ("a,b,same\n", "expected at least one row"),
        ("file,person\nx.jpg,Ann\nx.jpg,Bob\n", "expected each picture once"),
        ("file,person\nx.jpg\n", "expected a value in the column person"),
    ],
)
def test_rows_that_say_nothing_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_face_list(written(tmp_path, text), Storage())


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_face_list(str(tmp_path / "none.csv"), Storage())


def test_people_follow_from_pairs_where_folders_do_not_tell() -> None:
    pairs = FacePairList(["1", "2", "3"], ["2", "4", "5"], [True, True, False], None)
    people = pairs.people()
    assert people["1"] == people["2"] == people["4"]
    assert len(set(people.values())) == 3
    with pytest.raises(UserError, match="1 and 3 are two people, and by other pairs"):
        FacePairList(["1", "2", "1"], ["2", "3", "3"], [True, True, False], None).people()


def test_scores_are_minus_distances_and_of_the_best_pair_of_faces() -> None:
    faces = faces_of([[[0, 0]], [[3, 4], [0, 1]], [], [[5, 12]]])
    pairs = FacePairList(["a", "a", "a"], ["b", "c", "d"], [True, False, False], None)
    table = judge_pairs(pairs, faces).whole.tables["pairs"]
    assert table["score"].to_pylist() == [pytest.approx(-1), None, pytest.approx(-13)]
    assert table["row_a"].to_pylist() == [10, 10, 10]
    assert table["row_b"].to_pylist() == [11, 12, 13]
    assert table["face_a"].to_pylist() == [0, None, 0]
    assert table["face_b"].to_pylist() == [1, None, 0]
    cosine = judge_pairs(pairs, faces_of([[[1, 0]], [[3, 4]], [], [[0, 2]]], "cosine")).whole.tables["pairs"]
    assert cosine["score"].to_pylist() == [pytest.approx(0.6), None, pytest.approx(0)]


def scores_one_by_one(
    faces: ListedFaces, pairs: list[tuple[int, int]]
) -> tuple[list[float], list[tuple[int, int]]]:
    """Return the best score of each pair of pictures, and of which of their faces, without numpy's loops."""
    scores, numbers = [], []
    for one, other in pairs:
        best = (np.nan, (-1, -1))
        for a in range(faces.ends[one], faces.ends[one + 1]):
            for b in range(faces.ends[other], faces.ends[other + 1]):
                x, y = faces.vectors[a].astype(float), faces.vectors[b].astype(float)
                cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                score = float(cosine if faces.metric == "cosine" else -np.linalg.norm(x - y))
                if not score <= best[0]:
                    best = (score, (int(faces.numbers[a]), int(faces.numbers[b])))
        scores.append(best[0])
        numbers.append(best[1])
    return scores, numbers


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("most", [1, 2])
def test_scores_at_once_are_those_one_by_one(metric: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.evaluation.face_embeddings._PAIRS", 7)  # In several blocks.
    draw = np.random.default_rng(1)
    faces = faces_of([draw.normal(size=(draw.integers(most + 1), 5)).tolist() for _ in range(30)], metric)
    pairs = [(int(one), int(other)) for one, other in draw.integers(0, 30, (200, 2))]
    found, numbers = _scores(faces, *zip(*pairs, strict=True))
    expected, expected_numbers = scores_one_by_one(faces, pairs)
    assert 0 < np.isnan(found).sum() < 200
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert numbers.tolist() == [[*one] for one in expected_numbers]


def test_no_pair_with_faces_has_no_scores() -> None:
    found, numbers = _scores(faces_of([[], []]), [0], [1])
    assert np.isnan(found).all()
    assert numbers.tolist() == [[-1, -1]]


def test_further_columns_of_a_list_are_kept(tmp_path: Path) -> None:
    text = "pose,a,b,same,light\nfrontal,x/1,x/2,1, lamp \nprofile,x/1,y/1,0\n"
    found = read_face_list(written(tmp_path, text), Storage())
    assert found is not None
    assert found.columns == {"pose": ["frontal", "profile"], "light": ["lamp", "null"]}
    found = read_face_list(written(tmp_path, "file,person,age\nx.jpg,Ann,old\n"), Storage())
    assert isinstance(found, PeopleList)
    assert found.columns == {"age": ["old"]}


def test_a_slice_is_judged_as_a_list_of_its_own() -> None:
    draw = np.random.default_rng(2)
    faces = faces_of([[one.tolist()] for one in draw.normal(size=(24, 3))])
    files = [f"{who}/{number}" for who in range(6) for number in range(4)]
    pairs = [(one, other) for one in range(24) for other in range(one)]
    first, second = ([files[pair[side]] for pair in pairs] for side in (0, 1))
    same = [one // 4 == other // 4 for one, other in pairs]
    whole = FacePairList(first, second, same, None)
    faces = ListedFaces(  # By `files` of the list, whose order is another one.
        faces.vectors[[files.index(file) for file in whole.files]],
        faces.numbers,
        faces.ends,
        faces.metric,
        faces.rows,
    )
    rows = np.flatnonzero(draw.random(len(pairs)) < 0.4)
    some = [[values[row] for row in rows] for values in (first, second, same)]
    alone = FacePairList(some[0], some[1], some[2], None)  # type: ignore[arg-type]
    order = [whole.files.index(file) for file in alone.files]
    own = ListedFaces(
        faces.vectors[order], faces.numbers[order], np.arange(len(order) + 1), faces.metric, faces.rows[order]
    )
    assert judge_pairs(whole, faces).of(rows) == judge_pairs(alone, own).whole.metrics


def test_a_failed_pair_counts_in_every_rate() -> None:
    faces = faces_of([[[0.0]], [[0.1]], [[5.0]], []])
    pairs = FacePairList(["a", "a", "a", "b"], ["b", "c", "d", "c"], [True, False, True, False], None)
    found = judge_pairs(pairs, faces).whole.metrics
    assert found["failed_pairs"].value == 1
    assert found["EER"].value == pytest.approx(0.5)  # The failed one is never accepted.


def people_by_hand(vectors: np.ndarray, people: list[str]) -> float:
    """Return the share of pictures whose nearest other one is of the same person."""
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(np.mean([people[one] == people[row] for row, one in enumerate(distances.argmin(1))]))


def fnir_by_hand(vectors: np.ndarray, people: np.ndarray, absent: set[str], fpir: float) -> float:
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    enrolled = np.array([one not in absent for one in people])
    strangers = [-distances[row][enrolled].min() for row in np.flatnonzero(~enrolled)]
    mates, firsts = [], []
    for row in np.flatnonzero(enrolled):
        own = enrolled & (people == people[row])
        mate = -distances[row][own].min()
        mates.append(mate)
        firsts.append(mate > -distances[row][enrolled & (people != people[row])].min())
    best = 1.0
    for threshold in sorted({*strangers, *mates, np.inf}):
        if np.mean([one >= threshold for one in strangers]) <= fpir:
            missed = [not (first and mate >= threshold) for first, mate in zip(firsts, mates, strict=True)]
            best = min(best, float(np.mean(missed)))
    return best


def test_people_are_searched_leave_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnbatch.evaluation.recognition._BLOCK", 200)  # Some pictures a block.
    draw = np.random.default_rng(3)
    people = [f"person {number}" for number in range(8) for _ in range(6)]
    centres = draw.normal(size=(8, 3)).repeat(6, 0)
    vectors = (centres + 0.6 * draw.normal(size=(48, 3))).astype(np.float32)
    listed = PeopleList([f"{number}.jpg" for number in range(48)], people)
    terms = Evaluate(absent=4, draws=5)
    found = judge_people(listed, faces_of([[one.tolist()] for one in vectors]), terms).whole
    assert found.metrics["rank1"].value == pytest.approx(people_by_hand(vectors, people))
    assert found.metrics["rank1"].count == 48
    again, names = np.random.default_rng(0), np.unique(people)
    draws = [{*names[again.choice(8, 4, replace=False)]} for _ in range(5)]
    expected = [fnir_by_hand(vectors, np.array(people), one, 0.05) for one in draws]
    assert found.metrics["FNIR@FPIR=5e-2"].value == pytest.approx(np.mean(expected))
    assert found.metrics["FNIR@FPIR=5e-2"].low == pytest.approx(np.percentile(expected, 2.5))


def test_searches_are_sliced_by_their_probes() -> None:
    faces = faces_of([[[0.0]], [[0.1]], [[0.9]], [[1.0]], [[5.0]], [[0.3]]])
    listed = PeopleList([*"abcdef"], ["Ann", "Ann", "Bob", "Bob", "Cat", "Cat"])
    judged = judge_people(listed, faces, Evaluate(absent=0, draws=1))
    assert judged.whole.metrics["rank1"].value == pytest.approx(4 / 6)
    for rows, rank1 in (((0, 1, 2, 3), 1.0), ((4, 5), 0.0), ((0, 5), 0.5)):
        found = judged.of(np.array(rows))
        assert (found["rank1"].value, found["rank1"].count) == (rank1, len(rows))


def test_a_person_with_one_picture_is_no_miss() -> None:
    faces = faces_of([[[0.0]], [[0.1]], [[5.0]], []])
    listed = PeopleList(["a", "b", "c", "d"], ["Ann", "Ann", "Bob", "Ann"])
    found = judge_people(listed, faces, Evaluate(absent=0, draws=1)).whole.metrics
    assert found["rank1"].value == pytest.approx(2 / 3)  # Ann's third picture has no face.
    assert found["rank1"].count == 3
    assert found["failed_probes"].value == 1


def test_more_absent_people_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="absent: expected fewer people than the 2"):
        judge_people(PeopleList(["a", "b"], ["A", "B"]), faces_of([[[0.0]], [[1.0]]]), Evaluate())
