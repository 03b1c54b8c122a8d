"""The job faces on pictures that are not what one hopes for: nothing is lost, and what failed says why."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import cnnbatch
from cnnbatch.cli.app import app
from cnnbatch.errors import UserError
from cnnbatch.inference.run import run
from cnnbatch.models import FaceDetector
from cnnbatch.types import CODES
from tests import tiny_faces
from tests.tasks.test_faces import COLOUR, QUIET, SQUARES, job, objects, run_faces

ANN = np.array(tiny_faces.PEOPLE["ann"]) / 100


def rows_of(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cnnbatch.open(str(out)).arrow().to_pylist()
    return found


def save(folder: Path, **pictures: NDArray[np.uint8]) -> Path:
    """Write pictures as PNG files of these names; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_forty_faces_have_forty_numbers_from_left_to_right(tmp_path: Path) -> None:
    corners = [(left, top) for top in range(5, 230, 60) for left in range(4, 390, 40)]
    faces = [("ann" if number % 3 else "bob", *one, 20) for number, one in enumerate(corners)]
    photos = tiny_faces.write(tmp_path / "photos", {"a.png": faces, "b.png": []}, size=(240, 400))
    run_faces(photos, tmp_path / "out", crop=True)
    crowd, none = objects(tmp_path / "out")
    assert none == []
    assert [(face["box"]["x1"], face["box"]["y1"]) for face in crowd] == sorted(corners)
    who = dict(zip(corners, (one[0] for one in faces), strict=True))
    for face in crowd:
        expected = np.array(tiny_faces.PEOPLE[who[face["box"]["x1"], face["box"]["y1"]]]) / 100
        assert face["embedding"] == pytest.approx(expected, abs=0.15)
    assert len({face["crop"] for face in crowd}) == len(crowd) == 40
    run_faces(photos, tmp_path / "some", max_faces=3)
    assert len(objects(tmp_path / "some")[0]) == 3


def test_faces_at_the_border_keep_what_the_picture_has_of_them(tmp_path: Path) -> None:
    edges = {"top": (30, -8), "left": (-8, 20), "bottom": (40, 48), "right": (88, 10)}
    whole = {name: tiny_faces.picture((60, 100), []) for name in edges}
    for name, (left, top) in edges.items():
        whole[name][max(0, top) : top + 20, max(0, left) : left + 20] = (
            tiny_faces.RED,
            *tiny_faces.PEOPLE["ann"],
        )
    run_faces(save(tmp_path / "photos", **whole), tmp_path / "out")
    for row in rows_of(tmp_path / "out"):
        left, top = edges[row["key"].removesuffix(".png")]
        (face,) = row["objects"]
        inside = [max(0, left), max(0, top), min(100, left + 20), min(60, top + 20)]
        assert [*face["box"].values()] == inside
        assert face["quality"]["size"] == 12
        assert np.isfinite(face["embedding"]).all()


class Turned(tiny_faces.Squares):
    """Finds the same squares, and takes every face to be upside down."""

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        return [
            {**one, "keypoints": one["boxes"][:, None, :2] + one["boxes"][:, None, 2:] - 1 - one["keypoints"]}
            for one in super().forward(pictures, sizes)
        ]


def turned() -> FaceDetector:
    """Return the detector of faces that are upside down."""
    return FaceDetector(Turned(), weights="turned", library="tiny 1")


def test_a_face_upside_down_is_turned_before_it_is_embedded(tmp_path: Path) -> None:
    pixels = tiny_faces.picture((60, 100), [("ann", 20, 10, 32)])
    pixels[10:42, 36:52, 1:] = tiny_faces.PEOPLE["bob"]  # On the right of the picture, so on the face's left.
    photos = save(tmp_path / "photos", a=pixels)
    for detector, who, roll in ((SQUARES, "ann", 0), (f"{__name__}:turned", "bob", 180)):
        out = tmp_path / who
        run_faces(
            photos, out, detector={"model": detector}, embedder={"model": "tests.tiny_faces:unit_left_colour"}
        )
        ((face,),) = objects(out)
        expected = np.array(tiny_faces.PEOPLE[who])
        assert face["embedding"] == pytest.approx(expected / np.linalg.norm(expected), abs=0.06)
        assert abs(face["quality"]["roll"]) == pytest.approx(roll, abs=1)


def test_pictures_of_one_colour_and_of_a_few_pixels(tmp_path: Path) -> None:
    face = (tiny_faces.RED, *tiny_faces.PEOPLE["ann"])
    photos = save(
        tmp_path / "photos",
        all_face=np.full((40, 40, 3), face, np.uint8),
        black=np.zeros((64, 64, 3), np.uint8),
        one=np.zeros((1, 1, 3), np.uint8),
        one_face=np.full((1, 1, 3), face, np.uint8),
        ten=np.zeros((10, 10, 3), np.uint8),
        ten_face=np.full((10, 10, 3), face, np.uint8),
        thin=np.zeros((1, 400, 3), np.uint8),
        white=np.full((64, 64, 3), 255, np.uint8),
    )
    run_faces(photos, tmp_path / "out", min_size=1)
    found = {row["key"]: row for row in rows_of(tmp_path / "out")}
    assert len(found) == 8
    assert all(row["error"] is None for row in found.values())
    assert [name for name, row in found.items() if row["objects"]] == [
        "all_face.png",
        "one_face.png",
        "ten_face.png",
    ]
    (covering,) = found["ten_face.png"]["objects"]
    assert covering["box"] == {"x1": 0, "y1": 0, "x2": 10, "y2": 10}
    for name in ("all_face.png", "ten_face.png", "one_face.png"):
        assert np.isfinite(found[name]["objects"][0]["embedding"]).all()


@pytest.mark.slow
def test_a_picture_of_twenty_megapixels_has_its_faces_where_they_are(tmp_path: Path) -> None:
    faces = [("ann", 100, 200, 400), ("bob", 4800, 3700, 200)]
    photos = tiny_faces.write(tmp_path / "photos", {"a.png": faces, "b.png": []}, size=(4000, 5000))
    for size in (None, 1250):
        out = tmp_path / f"out-{size}"
        run_faces(photos, out, detector={"size": size})
        found, none = objects(out)
        assert none == []
        for face, (who, left, top, side) in zip(found, faces, strict=True):
            box = [left, top, left + side, top + side]
            assert [*face["box"].values()] == pytest.approx(box, abs=8 if size else 0)
            assert face["embedding"] == pytest.approx(np.array(tiny_faces.PEOPLE[who]) / 100, abs=0.2)


@pytest.mark.slow
def test_mtcnn_takes_all_of_it_in_one_batch(tmp_path: Path) -> None:
    pytest.importorskip("facenet_pytorch", reason="facenet-pytorch, which has the weights, is missing")
    data = pytest.importorskip("skimage.data", reason="scikit-image, which has the photograph, is missing")
    person = data.astronaut()[:300, 80:380]
    photos = save(
        tmp_path / "photos",
        border=person[:, 100:],
        none=data.astronaut()[300:, :200],
        one_colour=np.full((300, 300, 3), 128, np.uint8),
        one_pixel=np.zeros((1, 1, 3), np.uint8),
        ten=person[::30, ::30],
        upright=person,
        upside_down=person[::-1, ::-1],
    )
    run_faces(photos, tmp_path / "out", detector={"model": "mtcnn"})
    found = {row["key"].removesuffix(".png"): row for row in rows_of(tmp_path / "out")}
    assert len(found) == 7
    assert all(row["error"] is None for row in found.values())
    assert {name: len(row["objects"]) for name, row in found.items() if name != "upside_down"} == {
        "border": 1,
        "none": 0,
        "one_colour": 0,
        "one_pixel": 0,
        "ten": 0,
        "upright": 1,
    }


def test_a_picture_that_failed_fails_its_pairs(tmp_path: Path) -> None:
    faces = {f"{who}/{number}.png": [(who, 30, 20, 24)] for who in ("ann", "bob") for number in (1, 2)}
    photos = tiny_faces.write(tmp_path / "photos", faces)
    (photos / "bob" / "2.png").write_bytes(b"no picture")
    run(job(photos, tmp_path / "out").model_copy(update={"max_failed": 0.5}), QUIET)
    broken = rows_of(tmp_path / "out")[3]
    assert (broken["key"], broken["error"]["code"], broken["objects"]) == ("bob/2.png", "undecodable", None)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,same\nann/1.png,ann/2.png,1\nbob/1.png,bob/2.png,1\nann/1.png,bob/1.png,0\n")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), f"truth={pairs}", "slices=[error]"])
    assert done.exit_code == 2
    assert "'error' is of type struct" in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), f"truth={pairs}"])
    assert done.exit_code == 0, done.output
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["failed"] == 1
    assert evaluation["metrics"]["failed_pairs"]["value"] == 1
    scores = pq.read_table(tmp_path / "out" / "evaluation" / "pairs.parquet")["score"].to_pylist()
    assert [score is None for score in scores] == [False, True, False]


class Small(nn.Module):
    """An embedder that is exported in a moment."""

    def forward(self, chips: Tensor) -> Tensor:
        found: Tensor = chips.mean((2, 3))
        return found


def test_what_is_wrong_with_a_network_is_said_by_its_own_field(tmp_path: Path) -> None:
    photos = tiny_faces.write(tmp_path / "photos", {"a.png": []})
    (tmp_path / "cut.dat").write_bytes(b"\x01\x01\x04")
    cut = {"model": "dlib_resnet", "weights": str(tmp_path / "cut.dat")}
    with pytest.raises(UserError, match=r"^task\.embedder\.weights: .*cut\.dat.* cut off"):
        run(job(photos, tmp_path / "out", embedder=cut), QUIET)
    absent = {"model": "mtcnn", "weights": str(tmp_path / "absent.pt")}
    with pytest.raises(UserError, match=r"^task\.detector\.weights: .*there is no file"):
        run(job(photos, tmp_path / "out", detector=absent), QUIET)


def test_an_onnx_embedder_of_another_size_stops_the_job_before_it_begins(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime, which runs the files, is not installed")
    from tests.models.onnx.test_onnx import export

    file = export(Small(), tmp_path / "faces.onnx", torch.zeros(1, 3, 96, 80))
    photos = tiny_faces.write(tmp_path / "photos", {"a.png": [("ann", 30, 20, 24)]})
    fields = {
        "input": photos,
        "output": tmp_path / "out",
        "task.detector.model": SQUARES,
        "task.embedder.model": "onnx",
        "task.embedder.weights": file,
        "task.embedder.adapter": "arcface",
        "compute.pool": "inline",
    }
    done = CliRunner().invoke(
        app, ["run", "faces", *(f"{name}={value}" for name, value in fields.items()), "--quiet"]
    )
    assert done.exit_code == 2, done.output
    said = " ".join(done.output.split())
    assert "faces.onnx takes chips of 96 x 80 pixels, but arcface has its landmarks in chips of 112" in said
    assert not [*(tmp_path / "out").glob("predictions/*")]


@pytest.mark.slow
@pytest.mark.parametrize("detector", [SQUARES, "mtcnn"])
def test_files_that_break_readers_are_rows(shared: Path, detector: str, tmp_path: Path) -> None:
    root = shared / "data" / "hostile"
    if not root.is_dir():
        pytest.skip("no hostile files beside the checkout")
    if detector == "mtcnn":
        pytest.importorskip("facenet_pytorch", reason="facenet-pytorch, which has the weights, is missing")
    with (root / "manifest.csv").open(encoding="utf-8") as manifest:
        files = [row["file"] for row in csv.DictReader(manifest)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path", *(str(root / file) for file in files)]))
    spec = job(listed, tmp_path / "out", COLOUR, detector={"model": detector, "size": 1000})
    run(spec.model_copy(update={"max_failed": 1.0}), QUIET)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len(files) == 109
    failed = [row for row in rows if row["error"]]
    assert {row["error"]["code"] for row in failed} <= CODES
    assert {row["error"]["stage"] for row in failed} == {"decode"}
    assert 0 < len(failed) < 60
    for row in rows:
        assert (row["objects"] is None) == (row["error"] is not None)


class Failing(tiny_faces.Squares):
    """Fails on pictures whose first pixel has the values 7, 77 and 7."""

    def forward(self, pictures: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        if any(one[:, 0, 0].tolist() == [7, 77, 7] for one in pictures):
            raise ValueError("more than this network can bear")
        return super().forward(pictures, sizes)


def failing() -> FaceDetector:
    """Return the detector that fails on some pictures."""
    return FaceDetector(Failing(), weights="failing", library="tiny 1")


def test_a_picture_on_which_the_detector_fails_is_a_row(tmp_path: Path) -> None:
    photos = tiny_faces.write(tmp_path / "photos", {"a.png": [("ann", 30, 20, 24)], "c.png": []})
    bad_one = tiny_faces.picture((60, 100), [("ann", 30, 20, 24)])
    bad_one[0, 0] = 7, 77, 7
    save(photos, b=bad_one)
    spec = job(photos, tmp_path / "out", detector={"model": f"{__name__}:failing"})
    run(spec.model_copy(update={"max_failed": 0.5}), QUIET)
    good, bad, none = rows_of(tmp_path / "out")
    assert (bad["key"], bad["error"]["stage"], bad["error"]["code"]) == ("b.png", "predict", "predict")
    assert "more than this network can bear" in bad["error"]["message"]
    assert good["objects"][0]["embedding"] == pytest.approx(ANN, abs=0.15)
    assert none["objects"] == []
