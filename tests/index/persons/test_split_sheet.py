"""A proposed cut as a contact sheet: which faces it shows, where, and with what numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cnnbatch
from cnnbatch.index.originals import Originals
from cnnbatch.index.persons import split_sheet
from cnnbatch.index.persons.correcting import persons_of, proposed
from cnnbatch.index.persons.group import group
from cnnbatch.index.persons.split_sheet import mean_cosines
from cnnbatch.index.sheet import SIDE, Band
from tests import tiny_faces
from tests.embedded import build
from tests.tasks.test_faces import run_faces
from tests.tiny_faces import PEOPLE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return an index of ten faces of ann and two of bob, grouped as one person."""
    pictures = {
        f"{who}{number}.png": [(who, 5 + number, 10, 20 + number)]
        for who, count in (("ann", 10), ("bob", 2))
        for number in range(count)
    }
    run_faces(tiny_faces.write(tmp_path / "photos", pictures), tmp_path / "out")
    build(tmp_path / "out", tmp_path / "index")
    group(str(tmp_path / "index"), -1.0)
    return tmp_path / "index"


def sheet(place: Path) -> Image.Image:
    index = cnnbatch.open(place)
    persons = persons_of(index)
    originals = Originals(index.uri, index.storage)
    data = split_sheet.split_sheet(index, persons, proposed(index, persons, "0"), originals)
    assert not [*originals.problems()]
    with Image.open(io.BytesIO(data)) as shown:
        return shown.convert("RGB")


def colours(shown: Image.Image, top: int, columns: int) -> list[bool]:
    """Return of each crop of a line whether it is of ann's colour rather than of bob's."""
    middles = [shown.getpixel((SIDE // 2 + SIDE * column, top + SIDE // 2)) for column in range(columns)]
    ann, bob = (np.array(PEOPLE[who]) for who in ("ann", "bob"))
    return [bool(abs(one[1:] - ann).sum() < abs(one[1:] - bob).sum()) for one in map(np.array, middles)]


def test_both_halves_are_shown(place: Path) -> None:
    shown = sheet(place)
    line = Band([[]]).height  # of crops and their words
    titles = shown.height - 3 * line  # Ann's faces take two lines, bob's one.
    assert colours(shown, titles // 2, 8) == [True] * 8
    assert colours(shown, titles // 2 + line, 2) == [True] * 2
    assert colours(shown, titles + 2 * line, 2) == [False] * 2


def test_of_many_some_from_the_first_to_the_last_are_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sheet(place)
    monkeypatch.setattr(split_sheet, "MOST", 8)
    assert sheet(place).height < whole.height  # Eight of ten need one line.


def test_mean_cosines_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9, 5)).astype(np.float16)
    own, other = mean_cosines(vectors, np.array([0, 2, 4]), np.array([1, 7]))
    products = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert own == pytest.approx([products[a, [b, c]].mean() for a, b, c in ((0, 2, 4), (2, 0, 4), (4, 0, 2))])
    assert other == pytest.approx(products[[0, 2, 4]][:, [1, 7]].mean(1))
    assert np.isnan(mean_cosines(vectors, np.array([3]), np.array([1]))[0]).all()
