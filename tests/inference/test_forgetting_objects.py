"""Faces of a group picture and whole pictures with assets are forgotten: rows, crops, maps and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.output.export import ExportOptions, export
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten import Forgotten, Suppression, finish, key_hmac, secret_of, suppress
from cnnbatch.report.painter import painter
from cnnbatch.storage import Storage
from tests import tiny_faces, tiny_segmenter
from tests.forgetting import box_of, forget, traces

QUIET = RunOptions(quiet=True)
NEW = RunOptions(new=True, quiet=True)
AGAIN = RunOptions(retry_failed=True, quiet=True)
ANN, BOB, CAT = ("ann", 5, 20, 20), ("bob", 60, 10, 30), ("cat", 30, 30, 12)


def job(photos: Path, out: Path) -> MapJob:
    return MapJob.model_validate(
        {
            "task": {
                "name": "faces",
                "detector": {"model": "tests.tiny_faces:squares"},
                "embedder": {"model": "tests.tiny_faces:mean_colour"},
                "crop": True,
            },
            "input": {"url": str(photos), "shard_size": 3},
            "output": str(out),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return pictures of which the first has three people; the others have one or nobody."""
    pictures = {"a.png": [BOB, ANN, CAT], "b.png": [], "c.png": [CAT], "d.png": [CAT], "e.png": [CAT]}
    return tiny_faces.write(tmp_path / "photos", pictures)


def rows(out: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in cnnbatch.open(str(out)).arrow().to_pylist()}


def crops(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in (out / "assets").rglob("*.jpg")}


def faces(row: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = row["objects"]
    return found


def test_one_face_of_a_group_goes_and_the_others_stay(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(photos, out), QUIET)
    before = rows(out)
    ann, cat, bob = faces(before["a.png"])
    rewritten = forget(out, objects=[("a.png", box_of(bob))])
    after = rows(out)
    assert after.pop("a.png") == {**before.pop("a.png"), "objects": [ann, cat]}
    assert after == before
    assert not (out / bob["crop"]).exists()
    assert {one.uri for one in rewritten.objects if one.after is None} == {f"{out}/{bob['crop']}"}
    assert traces(out, vectors=[bob["embedding"]]) == set()


@pytest.mark.parametrize("how", ["lost", "changed", "failed"])
def test_a_face_does_not_come_back(how: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if how == "failed":
        (photos / "c.png").write_bytes(b"no picture")
    run(job(photos, out).model_copy(update={"max_failed": 1.0}), QUIET)
    before = rows(out)
    ann, cat, bob = faces(before["a.png"])
    forget(out, objects=[("a.png", box_of(bob))])
    if how == "lost":
        (out / "predictions" / "part-00000000.parquet").unlink()
    elif how == "changed":  # The faces have moved a little.
        tiny_faces.write(photos, {"a.png": [("bob", 62, 11, 30), ANN, CAT]})
    else:
        tiny_faces.write(photos, {"c.png": [CAT]})
    assert run(job(photos, out), AGAIN if how == "failed" else NEW).images == (3 if how == "lost" else 1)
    found = faces(rows(out)["a.png"])
    assert [one["box"] for one in found] == [one["box"] for one in (ann, cat)]
    assert crops(out) == {face["crop"] for row in rows(out).values() for face in faces(row)}
    assert traces(out, vectors=[bob["embedding"]]) == set()


def test_a_picture_in_which_the_face_is_elsewhere_goes_as_a_whole(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(photos, out), QUIET)
    _, _, bob = faces(rows(out)["a.png"])
    forget(out, objects=[("a.png", box_of(bob))])
    before = rows(out)
    tiny_faces.write(photos, {"a.png": [("bob", 68, 25, 30), ANN, CAT]})
    summary = run(job(photos, out), NEW)
    assert (summary.images, summary.failed_in_all) == (1, {})
    after = rows(out)
    (hidden,) = after.keys() - before.keys()
    assert after.pop(hidden)["error"]["code"] == "forgotten"
    assert after == {key: row for key, row in before.items() if key != "a.png"}
    assert crops(out) == {face["crop"] for row in after.values() for face in faces(row)}
    assert traces(out, vectors=[bob["embedding"]]) == set()


def test_what_another_model_found_forgets_the_picture(photos: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    run(job(photos, out), QUIET)
    _, _, bob = faces(rows(out)["a.png"])
    output = Output(str(other), Storage())
    entry = Suppression(key_hmac(secret_of(output), "a.png"), box_of(bob), "another network")
    suppress(output, "b" * 32, [entry], "INDEX")
    finish(output, "b" * 32)
    run(job(photos, other), QUIET)
    assert rows(other).keys() == {"b.png", "c.png", "d.png", "e.png", key_hmac(secret_of(output), "a.png")}
    assert run(job(photos, other), NEW).found == {"new": 0, "changed": 0, "vanished": 0}
    assert Forgotten.read(output).names("a.png")


def test_a_whole_picture_takes_its_crops_with_it(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(photos, out), QUIET)
    before = rows(out)
    forget(out, "a.png")
    after = rows(out)
    assert after.keys() >= before.keys() - {"a.png"}
    assert crops(out) == {face["crop"] for row in after.values() for face in row["objects"] or ()}
    vectors = [face["embedding"] for face in faces(before["a.png"])]
    assert traces(out, ["a.png"], vectors[2:]) == set()


@pytest.mark.parametrize("format", ["coco", "voc", "yolo", "csv", "chips", "pictures"])
def test_exports_leave_out_what_was_forgotten(format: str, photos: Path, tmp_path: Path) -> None:
    out, to = tmp_path / "out", tmp_path / "to"
    run(job(photos, out), QUIET)
    _, _, bob = faces(rows(out)["a.png"])
    forget(out, "d.png", objects=[("a.png", box_of(bob))])
    hidden = rows(out).keys() - {"a.png", "b.png", "c.png", "e.png"}
    summary = export(
        str(out),
        format,
        str(to),
        ExportOptions(paint=painter, face="all", score_threshold=0.0)
        if format == "chips"
        else ExportOptions(paint=painter),
    )
    assert (summary.counts.images, summary.counts.forgotten, summary.counts.failed.total()) == (4, 1, 0)
    assert "forgotten: 1 image; left out" in "\n".join(summary.lines())
    assert traces(to, ["d.png", *hidden]) == set()
    names = {path.stem for path in to.rglob("*") if path.is_file()}
    assert "d" not in names


def test_a_job_over_its_objects_leaves_out_what_was_forgotten(photos: Path, tmp_path: Path) -> None:
    out, of_faces = tmp_path / "out", tmp_path / "faces"
    run(job(photos, out), QUIET)
    forget(out, "d.png")
    spec = {
        "task": {"name": "tests.toy:Toy"},
        "input": {"url": f"{out}#objects", "min_score": 0.0},
        "output": str(of_faces),
        "compute": {"pool": "inline", "batch": 4},
    }
    run(MapJob.model_validate(spec), QUIET)
    assert rows(of_faces).keys() == {"a.png#0", "a.png#1", "a.png#2", "c.png#0", "e.png#0"}
    forget(of_faces, "a.png")  # What is forgotten of a picture is forgotten of all its parts.
    assert {key for key in rows(of_faces) if len(key) < 64} == {"c.png#0", "e.png#0"}
    assert run(MapJob.model_validate(spec), NEW).images == 0
    assert traces(of_faces, ["a.png"]) == set()


def test_a_part_that_is_being_forgotten_is_no_input(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(job(photos, out), QUIET)
    suppress(Output(str(out), Storage()), "a" * 32, [], "INDEX")
    spec = {
        "task": {"name": "tests.toy:Toy"},
        "input": {"url": f"{out}#objects"},
        "output": str(tmp_path / "faces"),
        "compute": {"pool": "inline"},
    }
    with pytest.raises(UserError, match="cnnbatch forget INDEX"):
        run(MapJob.model_validate(spec), QUIET)


def test_maps_that_are_assets_go_with_their_picture(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    tiny_segmenter.scenes(photos, 5)
    how: dict[str, Any] = {
        "task": {"model": "tests.tiny_segmenter:colours", "map": "asset"},
        "input": {"url": str(photos), "shard_size": 3},
        "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
    }
    cnnbatch.run("segment", quiet=True, output=str(out), **how)
    before = rows(out)
    lost = (out / before["001.png"]["map"]).read_bytes()
    forget(out, "001.png")
    after = rows(out)
    (hidden,) = after.keys() - before.keys()
    assert after[hidden]["map"] is None
    assert {str(path.relative_to(out)) for path in (out / "assets").rglob("*.png")} == {
        row["map"] for row in after.values() if row["map"]
    }
    cnnbatch.run("segment", quiet=True, new=True, output=str(out), **how)
    assert rows(out) == after
    assert not any(path.read_bytes() == lost for path in out.rglob("*") if path.is_file())
    assert traces(out, ["001.png"]) == set()
    export(str(out), "voc", str(tmp_path / "voc"))
    assert traces(tmp_path / "voc", ["001.png"]) == set()
    assert np.sum([path.name == "001.png" for path in (tmp_path / "voc").rglob("*")]) == 0
