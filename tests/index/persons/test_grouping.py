"""Faces become persons, again and again, and what people said holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnbatch.index.persons import grouping, neighbours
from cnnbatch.index.persons.grouping import NOBODY, Said, group_faces, halves
from tests.embedded import people
from tests.index.persons.test_agglomerate import partition

EACH = 10
JOIN = 0.35
NOTHING = Said()


def clear(count: int, seed: int = 0) -> np.ndarray:
    """Return faces (N, 64) of persons with ten each, who are told apart without a doubt."""
    return people(count, seed, dimensions=64, each=EACH).astype(np.float16)


def new(count: int) -> np.ndarray:
    return np.full(count, NOBODY)


def group(vectors: np.ndarray, persons: np.ndarray, said: Said = NOTHING, join: float = JOIN) -> np.ndarray:
    found, _ = group_faces(vectors, np.arange(len(vectors)), persons, said, join, join)
    return found


def test_persons_are_found() -> None:
    assert partition(group(clear(60), new(60))) == partition(np.arange(60) // EACH)


def test_by_lists_the_same_persons_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_EXACTLY", 0)
    monkeypatch.setattr(neighbours, "_IN_A_LIST", 40)
    assert partition(group(clear(400), new(400))) == partition(np.arange(400) // EACH)


def test_new_faces_join_persons_who_are_there_and_these_stay_as_they_are() -> None:
    vectors = clear(60)
    persons = np.where(np.arange(60) % EACH < 7, np.arange(60) // EACH, NOBODY)
    persons[:3] = 99  # Somebody has been cut in two, wrongly: only a person may undo that.
    found = group(vectors, persons)
    wanted = partition(np.arange(60) // EACH) - {frozenset(range(10))}
    assert wanted < partition(found)
    assert len({*found[:3]}) == 1
    assert found[0] not in found[3:7]


@given(st.integers(0, 20), st.permutations(range(30)))
def test_the_order_of_faces_says_nothing(seed: int, order: list[int]) -> None:
    vectors = clear(30, seed)
    shuffled = group(vectors[order], new(30))
    assert partition(group(vectors, new(30))) == {
        frozenset(order[place] for place in one) for one in partition(shuffled)
    }


@given(
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=5),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=5),
)
def test_what_people_said_holds(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    roots = grouping._first_groups(new(40), one)
    apart = tuple(pair for pair in two if roots[pair[0]] != roots[pair[1]])  # No contradiction.
    found = group(clear(40), new(40), Said(tuple(one), tuple(((a,), (b,)) for a, b in apart)))
    assert all(found[a] == found[b] for a, b in one)
    assert all(found[a] != found[b] for a, b in apart)


def test_a_face_in_between_is_unsure() -> None:
    known, rows = np.where(np.arange(21) < 20, np.arange(21) // 10, NOBODY), np.arange(21)
    vectors, stranger = clear(20), clear(30, seed=5)[25].astype(float)
    face = vectors[:10].mean(0) / np.linalg.norm(vectors[:10].mean(0)) + stranger
    faces = np.concatenate([vectors, (face / np.linalg.norm(face))[None]]).astype(np.float16)
    cosine = float(np.mean(faces[:10].astype(float) @ faces[20].astype(float)))
    found, unsure = group_faces(faces, rows, known, Said(), cosine + 0.01, cosine - 0.01)
    assert found[20] not in found[:20]
    assert unsure.tolist() == [20]
    _, unsure = group_faces(faces, rows, known, Said(), cosine + 0.02, cosine + 0.01)
    assert not len(unsure)
    found, unsure = group_faces(faces, rows, known, Said(), cosine - 0.01, cosine - 0.02)
    assert found[20] == found[0]
    apart = Said(apart=(((0, 1), (20,)),))
    found, unsure = group_faces(faces, rows, known, apart, cosine - 0.01, cosine - 0.02)
    assert found[20] not in found[:20]
    assert not len(unsure)  # It is said whose it is not, and it is similar to nobody else.


@pytest.mark.parametrize("whole", [400, 8])
def test_a_person_is_cut_where_two_are_hidden(monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(grouping, "_WHOLE", whole)
    vectors, rows = clear(40), np.concatenate([np.arange(10, 20), np.arange(25, 30)])
    assert halves(vectors, rows, ()).tolist() == [False] * 10 + [True] * 5


def test_faces_that_are_together_are_not_cut() -> None:
    assert not halves(clear(20), np.array([0, 10]), [(0, 1)]).any()
    second = halves(clear(20), np.arange(20), [(0, 10)])
    assert second.any()
    assert second[0] == second[10]
