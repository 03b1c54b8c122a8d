"""Calibrating an index, verifying two photos and naming faces, on the command line, by tiny faces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from cnnbatch.config import plugins
from cnnbatch.index import verify
from cnnbatch.index.gallery import Gallery
from cnnbatch.index.identify import ranked
from tests import tiny_faces
from tests.embedded import build
from tests.tasks.test_faces import run_faces

CODE = ["tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"]
Ask = Callable[..., str]


@pytest.fixture(autouse=True)
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_given", {*CODE})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of twelve pictures of ann and twelve of bob, each with a smaller face of the other."""
    folder = tmp_path_factory.mktemp("people")
    pictures = {
        f"{who}/{number}.png": [(who, 5 + number, 10, 20 + number), (other, 60, 20, 10)]
        for who, other in (("ann", "bob"), ("bob", "ann"))
        for number in range(12)
    }
    photos = tiny_faces.write(folder / "photos", pictures)
    run_faces(photos, folder / "out")
    build(folder / "out", folder / "index")
    return folder / "index"


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    """Return a copy of the index that nobody has calibrated."""
    return Path(copytree(built, tmp_path / "index"))


def ask(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == status, done.output
    return done.output


def photo(folder: Path, name: str, *faces: tiny_faces.Face) -> str:
    return str(tiny_faces.write(folder, {name: faces}) / name)


def lines_of(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def strangers(folder: Path, count: int = 12) -> Path:
    """Write pictures of cat, who is not in the index."""
    return tiny_faces.write(folder, {f"cat/{one}.png": [("cat", one, 10, 15)] for one in range(count)})


def test_two_photos_are_compared_by_what_was_calibrated(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = photo(tmp_path, "one.png", ("ann", 10, 10, 30))
    again = photo(tmp_path, "again.png", ("ann", 40, 12, 20), ("bob", 5, 5, 12))
    other = photo(tmp_path, "other.png", ("bob", 40, 12, 20))
    [before] = lines_of(ask("verify", one, again, "--index", place, "--json"))
    assert before["same"] is None
    assert before["reason"].endswith("is not calibrated: give cnnbatch calibrate")
    assert before["reason"].startswith("tests.tiny_faces:mean_colour has no published threshold")
    with monkeypatch.context() as patch:
        patch.setattr(verify, "PUBLISHED", {"tests.tiny_faces:mean_colour": 0.5})
        [default] = lines_of(ask("verify", one, again, "--index", place, "--json"))
    assert default["same"] is True
    assert default["probability"] is None
    assert default["reason"].startswith(
        "the published default of tests.tiny_faces:mean_colour is a distance below 0.5, whose error rates on "
        "such photos are not known"
    )
    assert before["probability"] is None
    said = ask("calibrate", place, "--people", "folder")
    # 12 * 11 pairs of one person each way, 12 * 12 of two.
    assert said.startswith("132 pairs of one person, 144 of two\n")
    assert (
        "false accept rate 0.001: none: 144 pairs of two people can't resolve a rate of 1e-3: 1,000" in said
    )
    [same] = lines_of(ask("verify", one, again, "--index", place, "--rate", 0.01, "--json"))
    assert same["same"] is True
    assert same["probability"] > 0.9
    assert same["second"]["faces"] == 2  # The larger one is ann.
    assert same["second"]["box"] == [40.0, 12.0, 60.0, 32.0]
    said = ask("verify", one, other, "--index", place, "--rate", 0.01)
    assert said.startswith("two people: the threshold at a false accept rate of 0.01 is a similarity of ")
    [undecided] = lines_of(ask("verify", one, other, "--index", place, "--json"))
    assert undecided["same"] is None
    assert "1,000 are needed" in undecided["reason"]
    assert "no face was found in" in ask(
        "verify", one, photo(tmp_path, "empty.png"), "--index", place, status=2
    )


def test_faces_are_named_by_a_gallery_or_stay_unknown(place: Path, tmp_path: Path) -> None:
    gallery = tiny_faces.write(
        tmp_path / "gallery", {"Ann Lee/a.png": [("ann", 5, 5, 30)], "Bob/b.png": [("bob", 5, 5, 30)]}
    )
    photos = tiny_faces.write(
        tmp_path / "photos",
        {
            "both.png": [("bob", 5, 10, 20), ("ann", 50, 10, 20)],
            "cat.png": [("cat", 50, 10, 20)],
            "none.png": [],
        },
    )
    ask("calibrate", place, "--people", "folder")
    to = tmp_path / "found.parquet"
    said = ask("identify", place, photos, "--gallery", gallery, "--rate", 0.1)
    assert "0 of 3 faces named, 0 unknown, 3 undecided" in said
    assert "searches are not calibrated: give cnnbatch calibrate with --absent" in said
    assert "both.png#0\tundecided\t" in said
    assert "best match Bob" in said
    ask("calibrate", place, "--people", "folder", "--absent", strangers(tmp_path / "strangers"))
    said = ask("identify", place, photos, "--gallery", gallery, "--rate", 0.1, "--to", to)
    assert said == f"2 of 3 faces named, 1 unknown\n  {to}\n"
    assert "is there already" in ask("identify", place, photos, "--gallery", gallery, "--to", to, status=2)
    rows = pq.read_table(to).to_pylist()
    assert [(row["key"], row["id"], row["person"], row["is_known"]) for row in rows] == [
        ("both.png", "both.png#0", "Bob", True),
        ("both.png", "both.png#1", "Ann Lee", True),
        ("cat.png", "cat.png#0", None, False),
        ("none.png", None, None, None),
    ]
    assert [match["person"] for match in rows[0]["matches"]] == ["Bob", "Ann Lee"]
    assert rows[0]["matches"][0]["id"] == "Bob/b.png#0"
    assert rows[0]["box"] == {"x1": 5.0, "y1": 10.0, "x2": 25.0, "y2": 30.0}
    assert rows[3]["reason"] == "no face was found, or it can't be read"


def test_faces_are_named_by_the_persons_of_the_index(place: Path, tmp_path: Path) -> None:
    """Only a person with a name is known, whatever the folders say."""
    ask("calibrate", place, "--people", "folder", "--absent", strangers(tmp_path / "strangers"))
    ann, bob = (photo(tmp_path, f"{who}.png", (who, 10, 10, 30)) for who in ("ann", "bob"))
    assert "no person of" in ask("identify", place, ann, "--people", "persons", status=2)
    ask("group", place, "--similarity", 0.99)
    assert "no person of" in ask("identify", place, ann, "--people", "persons", status=2)
    [row] = lines_of(ask("identify", place, ann, "--rate", 0.1, "--json"))
    assert row["person"] == "ann"
    ask("persons", place, "--to", tmp_path / "faces.parquet")
    who = {one["id"]: one["person"] for one in pq.read_table(tmp_path / "faces.parquet").to_pylist()}
    ask("persons", place, "--name", who["ann/0.png#0"], "Ann Lee")
    for more in ((), ("--people", "persons")):
        [row] = lines_of(ask("identify", place, ann, "--rate", 0.1, "--json", *more))
        assert (row["person"], row["is_known"]) == ("Ann Lee", True)
        assert [match["person"] for match in row["matches"]] == ["Ann Lee"]
        [row] = lines_of(ask("identify", place, bob, "--rate", 0.1, "--json", *more))
        assert (row["person"], row["is_known"]) == (None, False)
    [row] = lines_of(ask("identify", place, bob, "--rate", 0.1, "--json", "--people", "folder"))
    assert row["person"] == "bob"


def test_faces_are_named_by_the_names_of_the_index(place: Path, tmp_path: Path) -> None:
    ask("calibrate", place, "--people", "folder", "--absent", strangers(tmp_path / "strangers"))
    one = photo(tmp_path, "one.png", ("ann", 10, 10, 30))
    [row] = lines_of(ask("identify", place, one, "--rate", 0.1, "--json"))
    assert (row["person"], row["is_known"]) == ("ann", True)
    assert row["prior"] == 0.5
    assert row["threshold"] <= row["similarity"]
    [row] = lines_of(ask("identify", place, one, "--rate", 0.01, "--json"))
    assert (row["person"], row["is_known"]) == (None, None)
    assert row["reason"] == "12 absent probes can't resolve a rate of 1e-2: 100 are needed"
    assert "the index keeps no column 'name'" in ask("identify", place, one, "--people", "name", status=2)
    empty = tiny_faces.write(tmp_path / "empty", {"x.png": []})
    assert "nobody is known in" in ask("identify", place, one, "--gallery", empty, status=2)


def test_what_is_known_has_to_be_given(place: Path, tmp_path: Path) -> None:
    assert "give --pairs FILE" in ask("calibrate", place, status=2)
    ask("calibrate", place, "--people", "folder")
    one = photo(tmp_path, "one.png", ("ann", 10, 10, 30))
    refused = ask("verify", one, one, "--index", place, "--rate", 1e-7, status=2)
    assert "expected a false accept rate that was calibrated (1e-2" in refused
    assert "what to do: give one of these as --rate" in refused
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,same\nx.png,y.png,1\n")
    assert "has no pair of the list with a face in each picture" in ask(
        "calibrate", place, "--pairs", pairs, status=2
    )
    pairs.write_text("a,b\nx.png,y.png\n")
    assert "expected a CSV file with the columns a, b and same" in ask(
        "calibrate", place, "--pairs", pairs, status=2
    )


def test_five_people_are_ranked_though_many_faces_are_of_one() -> None:
    """The nearest 200 faces are of one person; the best face of each of the others lies far behind them."""
    angles = np.concatenate([np.linspace(0, 0.1, 200), np.linspace(0.5, 1.5, 12)])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    names = ["ann"] * 200 + [f"p{number // 2}" for number in range(12)]
    people = [*dict.fromkeys(names)]
    numbers = np.array([people.index(name) for name in names], np.int32)
    gallery = Gallery(vectors, np.arange(212), numbers, people, lambda rows: [*map(str, rows)])
    queries = np.array([[1.0, 0.0], [np.cos(1.5), np.sin(1.5)]], np.float32)
    first, last = ranked(queries, gallery)
    assert [match["person"] for match in first] == ["ann", "p0", "p1", "p2", "p3"]
    assert [match["id"] for match in first[1:]] == ["200", "202", "204", "206"]
    assert [match["person"] for match in last] == ["p5", "p4", "p3", "p2", "p1"]
    few = Gallery(vectors, np.arange(201), numbers[:201], people[:2], lambda rows: [*map(str, rows)])
    assert [[match["person"] for match in one] for one in ranked(queries, few)] == [
        ["ann", "p0"],
        ["p0", "ann"],
    ]
