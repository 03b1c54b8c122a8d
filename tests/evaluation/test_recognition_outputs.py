"""Lists of faces and an output of the job faces: by keys and by places, in files and on a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cnnbatch.cli.app import app
from tests import tiny_faces
from tests.tasks.test_faces import run_faces

PAIRS = """a,b,same
photos/ann/1.png,photos/ann/2.png,1
photos/ann/1.png,photos/bob/1.png,0
photos/bob/1.png,photos/cat/1.png,0
photos/bob/1.png,photos/bob/2.png,1
photos/ann/2.png,photos/cat/1.png,0
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return an output of faces, of one picture with two and one with none."""
    photos = tiny_faces.write(
        tmp_path / "photos",
        {
            "ann/1.png": [("ann", 40, 20, 20)],
            "ann/2.png": [("ann", 40, 20, 20), ("bob", 0, 0, 32)],
            "bob/1.png": [("bob", 30, 15, 24)],
            "bob/2.png": [],
            "cat/1.png": [("cat", 30, 15, 24)],
        },
    )
    run_faces(photos, tmp_path / "out")
    return tmp_path / "out"


def evaluate(out: Path, text: str, *fields: str) -> Any:
    path = out.parent / "list.csv"
    path.write_text(text)
    return CliRunner().invoke(app, ["evaluate", str(out), f"truth={path}", *fields])


def scores(out: Path) -> list[float | None]:
    found: list[float | None] = pq.read_table(out / "evaluation" / "pairs.parquet")["score"].to_pylist()
    return found


def test_pairs_are_judged_and_shown(out: Path) -> None:
    found = evaluate(out, PAIRS)
    assert found.exit_code == 0, found.output
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (evaluation["images"], evaluation["failed"]) == (5, 1)
    assert evaluation["metrics"]["failed_pairs"]["value"] == 1
    near, far, *_, failed, _ = scores(out)
    assert failed is None
    assert near is not None
    assert far is not None
    assert near > far
    assert "1 picture without a face, which count as failed" in found.output
    page = (out / "report.html").read_text()
    assert "The most similar faces of two people" in page
    assert "The least similar faces of one person" in page
    assert f"distance {-near:.3f}" in page


def test_which_face_counts_may_be_said(out: Path) -> None:
    evaluate(out, PAIRS, "face=centre")
    centre = scores(out)
    evaluate(out, PAIRS, "face=largest")
    largest = scores(out)
    evaluate(out, PAIRS, "face=all")
    every = scores(out)
    assert centre[0] is not None
    assert largest[0] is not None
    assert centre[0] > largest[0]  # The largest face of ann/2.png is Bob's.
    assert every[0] == pytest.approx(centre[0])


def test_another_evaluation_leaves_no_table_of_the_one_before(out: Path) -> None:
    evaluate(out, PAIRS)
    assert (out / "evaluation" / "roc.parquet").exists()
    evaluate(out, "file,person\nann/1.png,a\nann/2.png,a\nbob/1.png,b\n", "absent=0")
    assert [path.name for path in (out / "evaluation").glob("*.parquet")] == ["cmc.parquet"]
    assert "The hardest pairs" not in (out / "report.html").read_text()


SLICED = """a,b,same,light
ann/1.png,ann/2.png,1,lamp
ann/1.png,bob/1.png,0,lamp
bob/1.png,cat/1.png,0,sun
bob/1.png,bob/2.png,1,sun
ann/2.png,cat/1.png,0,
"""


def test_error_rates_are_given_by_columns_of_the_list_and_of_the_output(out: Path) -> None:
    found = evaluate(out, SLICED, "slices=[light,width,key]")
    assert found.exit_code == 0, found.output
    evaluation = json.loads((out / "evaluation.json").read_text())
    light, width, key = (evaluation["slices"][column] for column in ("light", "width", "key"))
    assert [*light] == ["lamp", "null", "sun"]
    assert light["lamp"]["EER"]["value"] == 0
    assert light["lamp"]["EER"]["count"] == 2
    assert light["lamp"]["EER"]["low"] is not None
    assert light["sun"]["EER"]["value"] == 1  # The pair of one person has failed, so strangers come first.
    assert light["sun"]["failed_pairs"]["value"] == 1
    assert light["null"]["EER"]["value"] is None
    assert light["null"]["EER"]["reason"] == "no genuine pairs"
    assert light["lamp"]["TAR@FAR=1e-1"]["reason"].startswith("1 impostor pairs can't resolve")
    assert width == {"100": evaluation["metrics"]}
    assert [*key][:2] == ["ann/1.png, ann/2.png", "ann/1.png, bob/1.png"]
    page = (out / "report.html").read_text()
    assert "By light" in page
    assert "Numbers by width" in page


def test_searches_are_given_by_columns(out: Path) -> None:
    rows = ["ann/1.png,ann,lamp", "ann/2.png,ann,sun", "bob/1.png,bob,lamp", "bob/2.png,bob,sun"]
    found = evaluate(out, "\n".join(["file,person,light", *rows]), "slices=[light]", "absent=0")
    assert found.exit_code == 0, found.output
    light = json.loads((out / "evaluation.json").read_text())["slices"]["light"]
    assert [light[value]["rank1"]["value"] for value in ("lamp", "sun")] == [0.5, 0.5]
    assert [light[value]["failed_probes"]["value"] for value in ("lamp", "sun")] == [0, 1]


def test_files_may_be_named_by_keys(out: Path) -> None:
    found = evaluate(out, PAIRS.replace("photos/", ""))
    assert found.exit_code == 0, found.output


def test_files_may_have_longer_paths_than_the_keys(out: Path) -> None:
    found = evaluate(out, PAIRS.replace("photos/", "elsewhere/photos/"))
    assert found.exit_code == 0, found.output
    ambiguous = PAIRS.replace("photos/ann/1.png", "here/ann/1.png") + "there/ann/1.png,here/ann/1.png,1\n"
    assert "2 of 6 are not in it" in " ".join(evaluate(out, ambiguous).output.split())


def test_people_are_searched(out: Path) -> None:
    people = "file,person\n" + "".join(
        f"{who}/{number}.png,{who}\n"
        for who, number in (("ann", 1), ("ann", 2), ("bob", 1), ("bob", 2), ("cat", 1))
    )
    found = evaluate(out, people, "absent=1", "draws=2")
    assert found.exit_code == 0, found.output
    metrics = json.loads((out / "evaluation.json").read_text())["metrics"]
    assert metrics["rank1"]["value"] == pytest.approx(2 / 4)  # Bob's second picture has no face.
    assert metrics["failed_probes"]["value"] == 1


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        (
            PAIRS.replace("cat/1", "dog/1"),
            (),
            "expected pictures of .*, but 1 of 5 are not in it, as photos/dog/1.png",
        ),
        (PAIRS, ("format=coco",), "format: not for a list of pairs or people"),
        (
            SLICED,
            ("slices=[lihgt]",),
            "columns of the list or of the output, got 'lihgt'; did you mean light?",
        ),
        (PAIRS, ("slices=[objects]",), "slices: expected a column of texts, numbers or dates"),
        (PAIRS, ("face=nearest",), "face=nearest: expected centre"),
        ("file,person\nann/1.png,a\nann/2.png,a\n", (), "absent: expected fewer people than the 1"),
        (PAIRS + "photos/ann/1.png,photos/cat/1.png,1\n", (), "two people, and by other pairs"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    out: Path, text: str, fields: tuple[str, ...], message: str
) -> None:
    before = (out / "report.html").stat().st_mtime_ns
    found = evaluate(out, text, *fields)
    assert found.exit_code == 2
    assert re.search(message, " ".join(found.output.split())), found.output
    assert (out / "report.html").stat().st_mtime_ns == before


def test_fields_of_faces_are_for_lists_of_faces(out: Path) -> None:
    found = CliRunner().invoke(app, ["evaluate", str(out), "face=largest"])
    assert found.exit_code == 2
    assert "face: for a list of pairs or people as truth alone" in found.output
