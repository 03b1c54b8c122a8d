"""Pictures whose faces are hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cnnbatch.cli.app import app
from cnnbatch.output.export.pictures import hide
from tests import tiny_faces
from tests.tasks.test_faces import photos, run_faces

__all__ = ["photos"]


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("cover", [True, False])
def test_a_hidden_face_has_nothing_left_but_mean_colours(cover: bool) -> None:
    image, before = noise(100, 120), np.asarray(noise(100, 120)).astype(float)
    hide(image, (40, 30, 80, 70), cover)
    after = np.asarray(image).astype(float)
    inside = np.zeros((100, 120), bool)
    inside[22:78, 32:88] = True  # A fifth of 40 around it.
    assert np.array_equal(after[~inside], before[~inside])
    if cover:
        assert not after[inside].any()
    else:
        assert after[inside].std() < before[inside].std() / 3
        means = before[22:78, 32:88].reshape(8, 7, 8, 7, 3).mean((1, 3))
        assert np.abs(after[25:78:7, 35:88:7] - means).max() < 2  # In the midst of each of the eight.


@pytest.mark.parametrize("box", [(-30, -20, 10, 10), (110, 90, 150, 140), (0, 0, 120, 100), (5, 5, 6, 6)])
def test_faces_at_the_border_are_hidden(box: tuple[float, float, float, float]) -> None:
    image = noise(100, 120)
    hide(image, box, cover=True)
    left, top, right, bottom = (int(side) for side in box)
    part = np.asarray(image)[max(top, 0) : bottom, max(left, 0) : right]
    assert part.size
    assert not part.any()


def test_a_face_beside_the_picture_changes_nothing() -> None:
    image = noise(10, 10)
    hide(image, (-90, -90, -50, -50), cover=True)
    assert np.array_equal(np.asarray(image), np.asarray(noise(10, 10)))


def export(out: Path, to: Path, format: str, faces: str) -> Result:
    arguments = ["export", str(out), "--format", format, "--hide-faces", faces, "--to", str(to)]
    return CliRunner().invoke(app, arguments)


def test_export_hides_all_faces_that_were_found(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out")
    found = export(tmp_path / "out", tmp_path / "to", "pictures", "cover")
    assert found.exit_code == 0, found.output
    written = sorted(str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*.jpg"))
    assert written == [f"pictures/{name}.jpg" for name in "abcd"]
    for name in "abcd":
        with Image.open(tmp_path / "to" / "pictures" / f"{name}.jpg") as image:
            red = np.asarray(image)[..., 0]
        assert red.max() < tiny_faces.RED - 50  # Also the one that scores 0.12.


def test_the_option_of_another_name_says_which_is_meant(tmp_path: Path) -> None:
    arguments = [
        "export",
        str(tmp_path),
        "--format",
        "pictures",
        "--faces",
        "blur",
        "--to",
        str(tmp_path / "to"),
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "--hide-faces blur or cover" in found.output
    assert "--face says which face" in found.output


def test_faces_are_hidden_in_pictures_of_faces_alone(photos: Path, tmp_path: Path) -> None:
    run_faces(photos, tmp_path / "out")
    found = export(tmp_path / "out", tmp_path / "to", "coco", "blur")
    assert found.exit_code == 2
    assert "--hide-faces blur is for --format pictures" in found.output
