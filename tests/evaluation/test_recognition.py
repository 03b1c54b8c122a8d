"""Verification and identification of an output's embeddings by lists, against direct computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnbatch.errors import UserError
from cnnbatch.evaluation.face_embeddings import ListedFaces
from cnnbatch.evaluation.face_lists import FacePairList, PeopleList, read_face_list
from cnnbatch.evaluation.recognition import RecognitionTerms, judge_pairs, judge_people
from cnnbatch.storage import Storage


def faces_of(vectors: list[list[list[float]]], metric: Any = "euclidean") -> ListedFaces:
    """Return the faces of pictures, each given as the vectors of its faces."""
    flat = [one for some in vectors for one in some]
    return ListedFaces(
        np.array(flat, np.float32).reshape(len(flat), -1),
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
    table = judge_pairs(pairs, faces).tables["pairs"]
    assert table["score"].to_pylist() == [pytest.approx(-1), None, pytest.approx(-13)]
    assert table["row_a"].to_pylist() == [10, 10, 10]
    assert table["row_b"].to_pylist() == [11, 12, 13]
    assert table["face_a"].to_pylist() == [0, None, 0]
    assert table["face_b"].to_pylist() == [1, None, 0]
    cosine = judge_pairs(pairs, faces_of([[[1, 0]], [[3, 4]], [], [[0, 2]]], "cosine")).tables["pairs"]
    assert cosine["score"].to_pylist() == [pytest.approx(0.6), None, pytest.approx(0)]


def test_a_failed_pair_counts_in_every_rate() -> None:
    faces = faces_of([[[0.0]], [[0.1]], [[5.0]], []])
    pairs = FacePairList(["a", "a", "a", "b"], ["b", "c", "d", "c"], [True, False, True, False], None)
    found = judge_pairs(pairs, faces).metrics
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
    terms = RecognitionTerms(absent=4, draws=5)
    found = judge_people(listed, faces_of([[one.tolist()] for one in vectors]), terms)
    assert found.metrics["rank1"].value == pytest.approx(people_by_hand(vectors, people))
    assert found.metrics["rank1"].count == 48
    again, names = np.random.default_rng(0), np.unique(people)
    draws = [{*names[again.choice(8, 4, replace=False)]} for _ in range(5)]
    expected = [fnir_by_hand(vectors, np.array(people), one, 0.05) for one in draws]
    assert found.metrics["FNIR@FPIR=5e-2"].value == pytest.approx(np.mean(expected))
    assert found.metrics["FNIR@FPIR=5e-2"].low == pytest.approx(np.percentile(expected, 2.5))


def test_a_person_with_one_picture_is_no_miss() -> None:
    faces = faces_of([[[0.0]], [[0.1]], [[5.0]], []])
    listed = PeopleList(["a", "b", "c", "d"], ["Ann", "Ann", "Bob", "Ann"])
    found = judge_people(listed, faces, RecognitionTerms(absent=0, draws=1)).metrics
    assert found["rank1"].value == pytest.approx(2 / 3)  # Ann's third picture has no face.
    assert found["rank1"].count == 3
    assert found["failed_probes"].value == 1


def test_more_absent_people_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="absent: expected fewer people than the 2"):
        judge_people(PeopleList(["a", "b"], ["A", "B"]), faces_of([[[0.0]], [[1.0]]]), RecognitionTerms())
