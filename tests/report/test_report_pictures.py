"""Small pictures: upright, of every mode, refused at little cost, and never worth waiting for."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnbatch.errors import EnvironmentFault
from cnnbatch.report.pictures import NotShown, Viewer, hurried, thumbnail
from cnnbatch.report.prediction import Prediction, prediction_of
from cnnbatch.storage import Storage, StorageOptions
from tests.outputs import bad


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_thumbnails_of_every_mode(mode: str) -> None:
    if mode == "I;16":
        original = Image.fromarray(np.full((60, 80), 40_000, np.uint16))
    else:
        grey = Image.new("RGB", (80, 60), (156, 156, 156))
        original = grey.quantize(4) if mode == "P" else grey.convert(mode)
    buffer = io.BytesIO()
    original.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    small = thumbnail(buffer.getvalue(), 40)
    assert (small.mode, small.size) == ("RGB", (40, 30))
    if mode != "1":
        assert np.abs(np.asarray(small).astype(int) - 156).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_thumbnails_are_upright(orientation: int, kind: str) -> None:
    upright = Image.new("RGB", (80, 40), "black")
    upright.paste("white", (0, 0, 20, 10))  # white in the upper left corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, inverted
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif)
    small = np.asarray(thumbnail(buffer.getvalue(), 40))
    assert small.shape == (20, 40, 3)
    assert small[1, 2].min() > 200
    assert small[-2, -2].max() < 60
    assert small[1, -2].max() < 60


def test_bombs_and_broken_bytes_are_refused_at_little_cost() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk
    large = bomb.replace(struct.pack(">II", 60_000, 60_000), struct.pack(">II", 9_000, 9_000))
    for data in (b"", b"GIF89a", bomb, large, bytes(range(256)) * 9):
        with pytest.raises(NotShown):
            thumbnail(data, 40)


class Down(Storage):
    """A storage that is gone; counts how often it was asked."""

    asked = 0

    def read(self, *_: Any, **__: Any) -> bytes:
        self.asked += 1
        raise EnvironmentFault("no answer", "wait")


def test_a_storage_that_is_gone_is_asked_a_few_times_only() -> None:
    storage = Down()
    pictures = Viewer(storage).pictures([Prediction(f"{n}", "s3://b/k") for n in range(48)], 40)
    assert {picture.reason for picture in pictures} == {"its storage does not answer"}
    assert storage.asked < 10


def test_many_pictures_are_read_in_a_hurry() -> None:
    options = hurried(StorageOptions(region="eu-1")).options
    assert (options.region, options.retries, options.timeout_s) == ("eu-1", 1, 10.0)


def test_a_row_is_read_by_the_columns_it_has() -> None:
    engine = {"key": "a", "uri": "u", "height": 3, "width": 4}
    assert prediction_of(engine) == Prediction("a", "u", (3, 4))
    assert prediction_of({**engine, "label": "cat"}).caption == "cat"
    assert prediction_of({**engine, "label": "cat", "score": 0.5}).caption == "cat, 50 %"
    assert prediction_of(bad("a", "empty", "zero bytes")).caption == "empty: zero bytes"
