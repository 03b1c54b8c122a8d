"""Photos that no output has embedded yet are embedded by the job that made the index, then asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.config import plugins
from tests import tiny_faces
from tests.embedded import build
from tests.index.test_index_people import strangers
from tests.tasks.test_faces import run_faces

CODE = ["tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an index of twelve pictures of ann and twelve of bob, calibrated."""
    monkeypatch.setattr(plugins, "_given", {*CODE})
    pictures = {
        f"{who}/{number}.png": [(who, 5 + number, 10, 20 + number), (other, 60, 20, 10)]
        for who, other in (("ann", "bob"), ("bob", "ann"))
        for number in range(12)
    }
    run_faces(tiny_faces.write(tmp_path / "known", pictures), tmp_path / "out")
    build(tmp_path / "out", tmp_path / "index")
    ask("calibrate", tmp_path / "index", "--people", "folder", "--absent", strangers(tmp_path / "strangers"))
    return tmp_path / "index"


def ask(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == status, done.output
    return done.output


def rows(folder: Path) -> dict[str, Any]:
    return {one["key"]: one for one in cnnbatch.open(folder).arrow().to_pylist()}


def test_photos_are_embedded_once_and_named(place: Path, tmp_path: Path) -> None:
    photos = tiny_faces.write(
        tmp_path / "photos",
        {
            "both.png": [("bob", 5, 10, 20), ("ann", 50, 10, 20)],
            "cat.png": [("cat", 50, 10, 20)],
            "none.png": [],
        },
    )
    (photos / "bad.png").write_bytes(b"no picture")
    words = ["run", "identify", f"input={photos}", f"index={place}", f"output={tmp_path / 'to'}"]
    words += ["identify.rate=0.1", "compute.pool=inline", "max_failed=0.5"]
    said = ask(*words)
    assert "3 embeddings: 2 named, 1 unknown" in said
    found = rows(tmp_path / "to")
    assert [one["label"] for one in found["both.png"]["objects"]] == ["bob", "ann"]
    assert [one["label"] for one in found["cat.png"]["objects"]] == ["unknown"]
    assert found["none.png"]["objects"] == []
    assert found["bad.png"]["error"]["stage"] == "decode"
    assert len(rows(tmp_path / "to" / "embedded")) == 4
    report = (tmp_path / "to" / "report.html").read_text()
    assert report.count("data:image/jpeg") == 3
    shown = cnnbatch.open(tmp_path / "to").show("both.png")
    assert shown.image is not None
    tiny_faces.write(photos, {"new.png": [("ann", 20, 10, 24)]})
    assert "nothing to do: all 4 rows" in ask(*words)
    ask(*words, "--new")
    assert [one["person"] for one in rows(tmp_path / "to")["new.png"]["objects"]] == ["ann"]
    assert "not for the answers" in ask("evaluate", tmp_path / "to", "label=x", status=2)
    assert "faces" in ask("evaluate", tmp_path / "to")


def test_an_output_stands_for_photos_when_an_index_is_calibrated(place: Path, tmp_path: Path) -> None:
    run_faces(tmp_path / "strangers", tmp_path / "absent")
    before = (place / "calibration.json").read_bytes()
    ask("calibrate", place, "--people", "folder", "--absent", tmp_path / "absent")
    assert (place / "calibration.json").read_bytes() == before
