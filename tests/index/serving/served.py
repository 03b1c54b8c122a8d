"""An index of tiny faces, and what answers about it in this process."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from tests import tiny_faces
from tests.embedded import build
from tests.tasks.test_faces import run_faces

CODE = ["tests.tiny_faces:squares", "tests.tiny_faces:mean_colour"]


def built(folder: Path) -> Path:
    """Return an index of twelve pictures of ann and twelve of bob, each with a smaller face of the other."""
    pictures = {
        f"{who}/{number}.png": [(who, 5 + number, 10, 20 + number), (other, 60, 20, 10)]
        for who, other in (("ann", "bob"), ("bob", "ann"))
        for number in range(12)
    }
    run_faces(tiny_faces.write(folder / "photos", pictures), folder / "out")
    build(folder / "out", folder / "index")
    return folder / "index"


def grow(folder: Path) -> None:
    """Add a picture of cat to the index that `built` made."""
    more = tiny_faces.write(folder / "more", {"cat/0.png": [("cat", 10, 10, 30)]})
    run_faces(more, folder / "out2")
    build([folder / "out", folder / "out2"], folder / "index")


def photo(*faces: tiny_faces.Face) -> bytes:
    """Return a photo with these faces, a PNG file."""
    file = io.BytesIO()
    Image.fromarray(tiny_faces.picture((60, 100), faces)).save(file, "PNG")
    return file.getvalue()


ANN = photo(("ann", 10, 10, 24))
BOTH = photo(("bob", 5, 10, 20), ("ann", 50, 10, 30))
