"""What of a grouping is in doubt, beside brute force; and what people said is no doubt."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

import cnnbatch
from cnnbatch.index.persons import correcting
from cnnbatch.index.persons.doubts import GroupedFaces
from cnnbatch.index.persons.group import group
from cnnbatch.index.persons.grouping import NOBODY
from tests.embedded import build, people, write_pictures


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return an index of seven persons with four faces each, of whom some faces stay alone or unsure."""
    write_pictures(tmp_path / "out", people(28, seed=3, dimensions=16, each=4))
    build(tmp_path / "out", tmp_path / "index")
    group(str(tmp_path / "index"), 0.66, 0.3)
    return tmp_path / "index"


def grouped(place: Path) -> tuple[GroupedFaces, np.ndarray]:
    """Return the faces, and all their cosines (N, N) in the order of places."""
    index = cnnbatch.open(place)
    faces = GroupedFaces(index.copy(), correcting.persons_of(index))
    vectors = np.asarray(index.copy().vectors, np.float64)[faces.rows]
    return faces, vectors @ vectors.T


def place_of(faces: GroupedFaces, row: int) -> int:
    return int(np.flatnonzero(faces.rows == row)[0])


def members(faces: GroupedFaces) -> dict[int, list[int]]:
    numbers = {*faces.persons.tolist()} - {NOBODY}
    return {one: np.flatnonzero(faces.persons == one).tolist() for one in sorted(numbers)}


def test_the_weakest_faces_are_those_of_all_pairs(place: Path) -> None:
    faces, cosines = grouped(place)
    wanted = {}
    for person, places in members(faces).items():
        if len(places) > 1:
            means = {
                one: np.mean([cosines[one, other] for other in places if other != one]) for one in places
            }
            wanted[person] = min(means.values())
    found = [*faces.weakest()]
    assert len(wanted) > 2
    assert {one.one: one.similarity for one in found} == pytest.approx(wanted, abs=1e-5)
    assert [one.similarity for one in found] == sorted(one.similarity for one in found)
    assert all(one.rows[0] != one.rows[1] for one in found)


def test_the_closest_persons_are_those_of_all_pairs(place: Path) -> None:
    faces, cosines = grouped(place)
    wanted = {
        (one, other): cosines[np.ix_(first, second)].mean()
        for (one, first), (other, second) in combinations(members(faces).items(), 2)
    }
    found = [*faces.closest()]
    assert {(one.one, one.other) for one in found[:3]} == {*sorted(wanted, key=lambda one: -wanted[one])[:3]}
    for one in found:
        assert one.similarity == pytest.approx(wanted[one.one, one.other], abs=1e-3)
        sides = [members(faces)[person] for person in (one.one, one.other)]
        shown = cosines[tuple(place_of(faces, row) for row in one.rows)]
        assert shown == pytest.approx(max(cosines[pair] for pair in product(*sides)), abs=1e-5)


def test_unsure_faces_come_with_the_persons_they_are_most_similar_to(place: Path) -> None:
    faces, cosines = grouped(place)
    found = [*faces.unsure(2)]
    assert len(found) == (faces.persons == NOBODY).sum() > 2
    for doubts in found:
        face = place_of(faces, doubts[0].rows[0])
        means = {one: cosines[face, places].mean() for one, places in members(faces).items()}
        best = sorted(means, key=lambda one: -means[one])
        assert [one.other for one in doubts] == best[:2]
        assert [one.similarity for one in doubts] == pytest.approx([means[one] for one in best[:2]], abs=1e-3)


def test_what_people_said_is_no_doubt(place: Path) -> None:
    faces, _ = grouped(place)
    first = next(faces.closest())
    cut = next(one for one in faces.weakest() if len(members(faces)[one.one]) > 2)
    index = cnnbatch.open(place)
    face = str(index.copy().rows(np.array([cut.rows[0]]))["id"][0])
    correcting.merge(str(place), str(first.one), str(first.other))
    faces, _ = grouped(place)
    assert first.one not in [one.one for one in faces.weakest()]
    correcting.take_back(str(place), str(first.one))
    after = correcting.split(str(place), str(cut.one), [face])
    faces, _ = grouped(place)
    pair = {cut.one, after.said.following - 1}
    assert pair <= {*members(faces)}
    assert pair not in [{one.one, one.other} for one in faces.closest()]
