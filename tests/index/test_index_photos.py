"""Photos searched for on the command line: embedded as the index was, shown on a contact sheet."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.config import plugins
from cnnbatch.errors import UserError
from cnnbatch.index.sheet import SIDE
from cnnbatch.job import MapJob
from tests import tiny_faces
from tests.embedded import build
from tests.tasks.test_faces import run_faces
from tests.tiny_faces import PEOPLE, RED

CODE = ["tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return an index of five faces."""
    photos = tiny_faces.write(
        tmp_path / "photos",
        {
            "a.png": [("bob", 60, 10, 30), ("ann", 5, 20, 20)],
            "b.png": [],
            "c.png": [("cat", 30, 30, 12)],
            "d.png": [("ann", 70, 30, 16), ("bob", 10, 10, 20)],
        },
    )
    run_faces(photos, tmp_path / "out")
    build(tmp_path / "out", tmp_path / "index")
    return tmp_path / "index"


def query(folder: Path, **faces: int) -> str:
    """Write a photo with a face a person, each that many pixels wide; return its path."""
    found = [(who, 10 + 40 * number, 10, side) for number, (who, side) in enumerate(faces.items())]
    return str(tiny_faces.write(folder, {"query.png": found}) / "query.png")


def ask(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*words])
    return done.exit_code, done.output


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_given", {*CODE})


@pytest.mark.usefixtures("given")
def test_a_photo_finds_who_is_in_it_and_a_sheet_shows_the_crops(place: Path, tmp_path: Path) -> None:
    photo, sheet = query(tmp_path / "q", ann=24), tmp_path / "sheet.jpg"
    status, said = ask("search", str(place), photo, "--k", "3", "--json", "--sheet", str(sheet))
    assert status == 0, said
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [row["id"] for row in rows] == ["a.png#0", "d.png#1", "c.png#0"]
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert (rows[0]["query_key"], rows[0]["query_id"]) == (photo, f"{photo}#0")
    assert rows[0]["box"] == {"x1": 5.0, "y1": 20.0, "x2": 25.0, "y2": 40.0}
    with Image.open(io.BytesIO(sheet.read_bytes())) as shown:
        pixels = np.asarray(shown).astype(int)
    for column, who in enumerate(["ann", "ann", "ann", "cat"]):
        centre = pixels[SIDE // 2, column * SIDE + SIDE // 2]
        assert np.abs(centre - (RED, *PEOPLE[who])).max() < 12, f"crop {column} is of somebody else"


@pytest.mark.usefixtures("given")
def test_every_face_of_a_photo_is_a_query(place: Path, tmp_path: Path) -> None:
    found = cnnbatch.open(place).search(query(tmp_path / "q", ann=20, cat=20), 1)
    assert found.select(["query", "id"]).to_pylist() == [
        {"query": 0, "id": "a.png#0"},
        {"query": 1, "id": "c.png#0"},
    ]


@pytest.mark.usefixtures("given")
def test_a_photo_without_a_face_or_without_a_picture_is_named(place: Path, tmp_path: Path) -> None:
    status, said = ask("search", str(place), query(tmp_path / "q"))
    assert status == 2
    assert "no face was found in" in said
    (tmp_path / "text.png").write_text("no picture")
    status, said = ask("search", str(place), str(tmp_path / "text.png"))
    assert status == 2
    assert "photos that can't be searched for" in said
    assert "undecodable" in said


def test_code_that_only_the_index_names_is_not_run(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names code to run, 'tests.tiny_faces:squares'.*\n.*--plugin"):
        cnnbatch.open(place).search(query(tmp_path / "q", ann=24))


@pytest.mark.usefixtures("given")
def test_weights_that_have_changed_since_are_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_faces.unit_colour()
    monkeypatch.setattr(tiny_faces, "mean_colour", lambda: other)
    with pytest.raises(UserError, match="the network of its job gives those of"):
        cnnbatch.open(place).search(query(tmp_path / "q", ann=24))


def test_the_commands_say_what_an_index_is(place: Path) -> None:
    status, said = ask("index", "info", str(place))
    assert (status, "5 embeddings of tests.tiny_faces:mean_colour" in said) == (0, True)
    assert json.loads(ask("index", "info", str(place), "--json")[1])["embeddings"] == 5
    assert ask("index", "check", str(place)) == (0, "every object is there, and is what was written\n")
    stray = place / "segments" / f"{'0' * 32}.parquet"
    stray.write_bytes(b"of a build that was killed")
    assert "1 object of earlier states or stopped builds" in ask("index", "check", str(place))[1]
    status, said = ask("index", "compact", str(place))
    assert (status, said.splitlines()[1]) == (0, "0 rows removed, 1 object deleted")
    assert not stray.exists()
    next((place / "segments").iterdir()).write_bytes(b"damaged")
    status, said = ask("index", "check", str(place))
    assert (status, "is damaged" in said) == (1, True)
    assert ask("index", "info", str(place.parent))[0] == 2


def test_the_command_builds_an_index(place: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "out", tmp_path / "second"
    status, said = ask("run", "index", f"input={out}", f"output={to}", "compute.pool=inline")
    assert (status, "5 embeddings added" in said) == (0, True), said
    status, said = ask("run", "index", f"input={out}", f"output={to}", "compute.pool=inline")
    assert (status, "nothing to do: the index has all 5 embeddings" in said) == (0, True)
    status, said = ask("run", "index", f"input={out}", f"output={to}", "index.recal=1")
    assert status == 2
    assert "did you mean index.recall?" in said
    assert ask("run", "index", f"output={to}")[0] == 2
    status, said = ask("run", "index", f"input={out}", f"output={to}", "kind=indx")
    assert (status, "did you mean index?" in said) == (2, True), said
    assert ask("check", "index", f"input={out}", f"output={to}")[0] == 2
    assert MapJob.model_fields["kind"].default == "map"
