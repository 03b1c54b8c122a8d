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
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob, TrainJob
from tests import tiny, tiny_faces
from tests.tasks.test_faces import job, run_faces

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


POSES = """a,b,same
ann/1.png,ann/2.png,1
bob/1.png,ann/1.png,0
bob/1.png,bob/2.png,1
ann/1.png,none.png,0
"""


@pytest.fixture
def posed(tmp_path: Path) -> Path:
    """Return an output whose large faces are half profiles; in ann/2.png the one at the centre is small."""
    photos = tiny_faces.write(
        tmp_path / "photos",
        {
            "ann/1.png": [("ann", 40, 20, 20)],
            "ann/2.png": [("bob", 0, 0, 30), ("ann", 45, 20, 20)],
            "bob/1.png": [("bob", 30, 15, 30)],
            "bob/2.png": [("bob", 30, 15, 30)],
            "none.png": [],
        },
    )
    run_faces(photos, tmp_path / "out", detector={"model": "tests.tiny_faces:looking"})
    return tmp_path / "out"


def counts_by_pose(out: Path, number: str) -> dict[str, int]:
    slices = json.loads((out / "evaluation.json").read_text())["slices"]["pose"]
    return {pose: numbers[number]["count"] for pose, numbers in slices.items()}


def test_pairs_are_sliced_by_the_pose_that_is_farther_from_the_front(posed: Path) -> None:
    assert evaluate(posed, POSES, "slices=[pose]").exit_code == 0
    assert counts_by_pose(posed, "EER") == {"frontal": 1, "half profile": 2, "without a face": 1}
    assert evaluate(posed, POSES, "slices=[pose]", "face=largest").exit_code == 0
    assert counts_by_pose(posed, "EER") == {"half profile": 3, "without a face": 1}
    found = evaluate(posed, POSES, "slices=[pose]", "face=all")
    assert found.exit_code == 2
    assert "pose is that of the one face of a picture that counts" in found.output


def test_pictures_of_people_are_sliced_by_their_poses(posed: Path) -> None:
    people = "file,person\nann/1.png,ann\nann/2.png,ann\nbob/1.png,bob\nbob/2.png,bob\nnone.png,ann\n"
    assert evaluate(posed, people, "slices=[pose]", "absent=0").exit_code == 0
    assert counts_by_pose(posed, "rank1") == {"frontal": 2, "half profile": 2, "without a face": 1}


def test_a_column_of_the_list_goes_before_what_is_found(posed: Path) -> None:
    listed = "a,b,same,pose\nann/1.png,ann/2.png,1,left\nbob/1.png,ann/1.png,0,right\n"
    assert evaluate(posed, listed, "slices=[pose]").exit_code == 0
    assert counts_by_pose(posed, "EER") == {"left": 1, "right": 1}


def test_a_job_that_names_a_list_is_judged_by_it_and_again_so(tmp_path: Path) -> None:
    faces = {f"{who}.png": [(who, 40, 20, 20)] for who in tiny_faces.PEOPLE}
    photos = tiny_faces.write(tmp_path / "photos", faces)
    (tmp_path / "pairs.csv").write_text("a,b,same\nann.png,bob.png,0\nann.png,cat.png,0\n")
    given = job(photos, tmp_path / "out").model_dump(mode="json")
    terms = {"truth": str(tmp_path / "pairs.csv"), "slices": ["pose"], "face": "largest"}
    run(MapJob.model_validate({**given, "evaluate": terms}), RunOptions(quiet=True))
    place = tmp_path / "out" / "evaluation.json"
    first = place.read_text()
    assert json.loads(first)["metrics"]["failed_pairs"]["count"] == 2
    assert [*json.loads(first)["slices"]] == ["pose"]
    assert "The hardest pairs" in (tmp_path / "out" / "report.html").read_text()
    place.unlink()
    assert CliRunner().invoke(app, ["evaluate", str(tmp_path / "out")]).exit_code == 0
    assert place.read_text() == first


@pytest.mark.parametrize(
    ("text", "terms", "words"),
    [
        ("file,label\nann.png,ann\n", {}, "expected a CSV file with the columns a, b, same or file, person"),
        ("a,b,same\n", {}, "expected at least one row"),
        ("a,b,same\n1,2,1\n2,3,1\n1,3,0\n", {}, "are two people, and by other pairs that they are one"),
        ("a,b,same\nann.png,bob.png,0\n", {"slices": ["pise"]}, "got 'pise'; did you mean pose"),
        (
            "file,person\nann.png,ann\n",
            {},
            "absent: expected fewer people than the 1 that the list has",
        ),
    ],
)
def test_a_list_that_can_not_judge_stops_a_job_before_its_first_image(
    tmp_path: Path, text: str, terms: dict[str, Any], words: str
) -> None:
    photos = tiny_faces.write(tmp_path / "photos", {"ann.png": [("ann", 40, 20, 20)]})
    (tmp_path / "list.csv").write_text(text)
    given = job(photos, tmp_path / "out").model_dump(mode="json")
    evaluated = {"truth": str(tmp_path / "list.csv"), **terms}
    with pytest.raises(UserError, match=words):
        run(MapJob.model_validate({**given, "evaluate": evaluated}), RunOptions(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_training_names_no_list(tmp_path: Path) -> None:
    data = tiny.job(tmp_path, tmp_path / "out", {}).model_dump(mode="json")
    with pytest.raises(ValueError, match=r"expected no evaluate\.truth in a training"):
        TrainJob.model_validate({**data, "evaluate": {"truth": "pairs.csv"}})


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
        ("a,b\nx,y\n", (), "truth: expected a CSV file with the columns a, b, same or file, person, got"),
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
