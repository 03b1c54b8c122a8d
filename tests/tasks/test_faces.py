"""The task faces: what its rows have, by small networks whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import cnnbatch
from cnnbatch.errors import UserError
from cnnbatch.inference.run import RunOptions, run
from cnnbatch.job import MapJob
from cnnbatch.models.face_alignment import transforms_to
from cnnbatch.models.face_conventions import BOX_POINTS
from cnnbatch.models.face_pipeline import FacePipeline
from cnnbatch.output.embeddings import EmbeddingSpace, space_of
from cnnbatch.tasks.faces import Faces
from cnnbatch.types import Runtime
from tests import tiny_faces

QUIET = RunOptions(quiet=True)
SQUARES, COLOUR = "tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"


def job(photos: Path, out: Path, model: str = COLOUR, **task: Any) -> MapJob:
    """Return a job with small shards in this process; ``detector`` and ``embedder`` have further fields."""
    networks = {
        name: {"model": one, **task.pop(name, {})}
        for name, one in (("detector", SQUARES), ("embedder", model))
    }
    return MapJob.model_validate(
        {
            "task": {"name": "faces", **networks, **task},
            "input": {"url": str(photos), "shard_size": 3},
            "output": str(out),
            "compute": {"pool": "inline", "precision": "fp32", "backend": "eager"},
        }
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return four pictures: two faces, none, one, one of them at the border."""
    return tiny_faces.write(
        tmp_path / "photos",
        {
            "a.png": [("bob", 60, 10, 30), ("ann", 5, 20, 20)],
            "b.png": [],
            "c.png": [("cat", 30, 30, 12)],
            "d.png": [("ann", 84, 44, 16)],
        },
    )


def run_faces(photos: Path, out: Path, **task: Any) -> None:
    """Run the job on a folder."""
    run(job(photos, out, **task), QUIET)


def objects(out: Path) -> list[Any]:
    found: list[Any] = cnnbatch.open(str(out)).arrow(["objects"])["objects"].to_pylist()
    return found


def test_faces_are_rows_of_objects_from_left_to_right(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out")
    two, none, one, border = objects(tmp_path / "out")
    assert none == []
    assert [face["box"]["x1"] for face in two] == [5, 60]
    assert [face["label"] for face in two] == ["face", "face"]
    assert two[1]["box"] == {"x1": 60, "y1": 10, "x2": 90, "y2": 40}
    assert two[1]["score"] == pytest.approx(0.3)
    nose = two[1]["keypoints"][2]
    assert (nose["x"], nose["y"], nose["visibility"]) == pytest.approx((60 + 15 - 0.5, 10 + 16.5 - 0.5, 2))
    assert border[0]["box"]["x2"] == 100
    for face, who in ((two[0], "ann"), (two[1], "bob"), (one[0], "cat"), (border[0], "ann")):
        assert face["embedding"] == pytest.approx(np.array(tiny_faces.PEOPLE[who]) / 100, abs=0.15)
    quality = two[0]["quality"]
    assert quality["size"] == 20
    assert abs(quality["yaw"]) < 1
    assert abs(quality["roll"]) < 1


def test_a_part_says_where_embeddings_lie(photos: Path, tmp_path: Path) -> None:
    run(job(photos, tmp_path / "out", "tests.tiny_faces:unit_colour"), QUIET)
    (first, *_) = sorted((tmp_path / "out" / "predictions").glob("*.parquet"))
    faces: Any = pq.read_schema(first).field("objects").type.value_type
    assert faces.field("embedding").type == pa.list_(pa.float32(), 2)
    space = EmbeddingSpace("tests.tiny_faces:unit_colour", "colour", 2, "l2", "cosine")
    assert space_of(faces.field("embedding")) == space
    for face in (face for some in objects(tmp_path / "out") for face in some):
        assert np.linalg.norm(face["embedding"]) == pytest.approx(1)


def test_with_mirror_the_embedding_is_the_mean_of_both_directions(tmp_path: Path) -> None:
    pixels = tiny_faces.picture((60, 100), [("ann", 20, 10, 32)])
    pixels[10:42, 36:52, 1:] = tiny_faces.PEOPLE["bob"]  # The right half of the face.
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    left = "tests.tiny_faces:unit_left_colour"
    found = {}
    for mirror in (False, True):
        out = tmp_path / f"out-{mirror}"
        run(job(tmp_path / "photos", out, left, embedder={"mirror": mirror}), QUIET)
        ((face,),) = objects(out)
        (part,) = (out / "predictions").glob("*.parquet")
        faces: Any = pq.read_schema(part).field("objects").type.value_type
        found[mirror] = face["embedding"], space_of(faces.field("embedding"))
    ann, bob = (np.array(tiny_faces.PEOPLE[who]) for who in ("ann", "bob"))
    assert found[False][0] == pytest.approx(ann / np.linalg.norm(ann), abs=0.06)
    assert found[True][0] == pytest.approx((ann + bob) / np.linalg.norm(ann + bob), abs=0.01)
    assert found[True][1] == EmbeddingSpace(left, "colour", 2, "l2", "cosine", mirror=True)
    assert found[False][1] == EmbeddingSpace(left, "colour", 2, "l2", "cosine")


def test_embeddings_with_and_without_mirror_are_not_of_one_output(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out")
    with pytest.raises(UserError, match=r"task\.embedder\.mirror"):
        run_faces(photos, tmp_path / "out", embedder={"mirror": True})


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_faces_of_turned_pictures_are_in_pixels_of_the_upright_ones(
    photos: Path, tmp_path: Path, degrees: int
) -> None:
    """The detector gives upright landmarks, so that in the upright picture they are turned back."""
    run_faces(photos, tmp_path / "upright")
    run_faces(photos, tmp_path / "turned", turn=degrees)
    angle = np.radians(-degrees)
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for before, after in zip(objects(tmp_path / "upright"), objects(tmp_path / "turned"), strict=True):
        assert [face["box"] for face in after] == [pytest.approx(face["box"]) for face in before]
        for one, other in zip(before, after, strict=True):
            assert other["embedding"] == pytest.approx(one["embedding"], abs=0.02)
            assert other["quality"]["yaw"] == pytest.approx(one["quality"]["yaw"], abs=0.01)
            upright, turned = map(points_of, (one, other))
            box = one["box"]
            centre = np.array([box["x1"] + box["x2"] - 1, box["y1"] + box["y2"] - 1]) / 2
            assert np.allclose(turned, centre + (upright - centre) @ back.T, atol=1e-3)


def points_of(face: Any) -> np.ndarray:
    return np.array([(point["x"], point["y"]) for point in face["keypoints"]])


def test_faces_turned_by_any_angle_lie_where_they_lie_upright(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out", turn=30)
    two, none, one, _ = objects(tmp_path / "out")
    assert none == []
    for face, (left, top, side) in ((two[1], (60, 10, 30)), (one[0], (30, 30, 12))):
        box = face["box"]
        centre = (box["x1"] + box["x2"]) / 2, (box["y1"] + box["y2"]) / 2
        # Of a face whose edge is blended with the dark around it, the detector sees the inside alone.
        assert centre == pytest.approx((left + side / 2, top + side / 2), abs=1.5)
        assert face["quality"]["roll"] == pytest.approx(-30, abs=1)


def test_without_alignment_a_chip_is_cut_by_the_box(tmp_path: Path) -> None:
    """The top half of the face is ann's, the bottom half bob's: where that changes in a chip follows."""
    pixels = tiny_faces.picture((60, 100), [("ann", 20, 10, 32)])
    pixels[26:42, 20:52, 1:] = tiny_faces.PEOPLE["bob"]
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    template = tiny_faces.mean_colour().template
    for align, points in (("similarity", tiny_faces.LANDMARKS), ("box", BOX_POINTS)):
        out = tmp_path / align
        run(job(tmp_path / "photos", out, align=align, crop=True), QUIET)
        ((face,),) = objects(out)
        chip = np.asarray(Image.open(out / face["crop"]))
        landmarks = torch.tensor([points], dtype=torch.float64) * 32 + torch.tensor([20, 10]) - 0.5
        (transform,) = transforms_to(template, landmarks).numpy()
        changes = float((transform @ (36, 25.5, 1))[1])  # Between the rows 25 and 26.
        assert (chip[:, 8, 1] > 120).sum() == pytest.approx(tiny_faces.SIDE - changes - 0.5, abs=0.6)


def test_aligned_faces_and_others_are_not_of_one_output(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out")
    with pytest.raises(UserError, match=r"task\.align: the output has 'similarity', this job has 'box'"):
        run_faces(photos, tmp_path / "out", align="box")
    with pytest.raises(UserError, match=r"task\.turn: the output has 0\.0, this job has 15\.0"):
        run_faces(photos, tmp_path / "out", turn=15)


def test_fields_choose_the_faces(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "large", min_size=15)
    assert [len(some) for some in objects(tmp_path / "large")] == [2, 0, 0, 1]
    run_faces(photos, tmp_path / "sure", min_score=0.25)
    assert [len(some) for some in objects(tmp_path / "sure")] == [1, 0, 0, 0]
    run_faces(photos, tmp_path / "one", max_faces=1)
    (best,) = objects(tmp_path / "one")[0]
    assert best["box"]["x1"] == 60


def test_a_detector_may_see_pictures_in_small(tmp_path: Path) -> None:
    faces = [("ann", 40, 80, 160), ("bob", 300, 60, 200)]
    photos = tiny_faces.write(tmp_path / "photos", {"a.png": faces, "b.png": faces}, size=(400, 600))
    run_faces(photos, tmp_path / "out", detector={"size": 150}, crop=True)
    for found in objects(tmp_path / "out"):
        for face, (who, left, top, side) in zip(found, faces, strict=True):
            box = [face["box"][name] for name in ("x1", "y1", "x2", "y2")]
            assert box == pytest.approx([left, top, left + side, top + side], abs=8)
            assert face["embedding"] == pytest.approx(np.array(tiny_faces.PEOPLE[who]) / 100, abs=0.2)
    run_faces(photos, tmp_path / "few", detector={"size": 150}, min_size=45)
    assert [len(some) for some in objects(tmp_path / "few")] == [1, 1]  # Of 40 and 50 pixels there.


def test_crops_are_what_was_embedded(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out", crop=True)
    two, *_ = objects(tmp_path / "out")
    for number, (face, who) in enumerate(zip(two, ("ann", "bob"), strict=True)):
        assert face["crop"].startswith(f"assets/crop/part-00000000/00000000.{number}-")
        with Image.open(tmp_path / "out" / face["crop"]) as image:
            chip = np.asarray(image).astype(int)
        assert chip.shape == (tiny_faces.SIDE, tiny_faces.SIDE, 3)
        assert np.abs(chip[4:12, 4:12] - (tiny_faces.RED, *tiny_faces.PEOPLE[who])).max() < 12


def test_rows_do_not_depend_on_batch_and_shape(photos: Path, tmp_path: Path) -> None:
    tiny_faces.write(photos, {"e.png": [("bob", 100, 100, 40)]}, size=(200, 300))
    run_faces(photos, tmp_path / "one")
    many = job(photos, tmp_path / "many").model_copy(update={})
    alone = MapJob.model_validate({**many.model_dump(), "compute": {**many.compute.model_dump(), "batch": 1}})
    run(alone, QUIET)
    assert objects(tmp_path / "one") == objects(tmp_path / "many")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_embeds_the_same_faces() -> None:
    faces = [[("ann", 10, 20, 30), ("bob", 60, 5, 40)], [], [("cat", 30, 30, 60)]]
    pictures = [tiny_faces.picture((100, 128), some) for some in faces]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    sizes = torch.tensor([[100, 120]] * 3)
    one, other = (
        FacePipeline(tiny_faces.squares(), tiny_faces.mean_colour(), Runtime(device))(batch, sizes)
        for device in ("cpu", "cuda")
    )
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours["boxes"], theirs["boxes"])
        torch.testing.assert_close(ours["embeddings"], theirs["embeddings"], rtol=0, atol=0.02)
        assert ((ours["chips"].int() - theirs["chips"].int()).abs() <= 2).all()


def test_a_licence_that_forbids_commercial_use_is_said(photos: Path, tmp_path: Path) -> None:
    task = Faces.model_validate(job(photos, tmp_path, "tests.tiny_faces:unit_colour").task.model_dump())
    assert any(
        "is not for commercial use: licence research" in note for note in task.load(Runtime("cpu")).notes
    )
