"""A contact sheet: of each query its crop, and beside it those of what was found, as one JPEG file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cnnbatch.humanize import clipped
from cnnbatch.output.reader import Reader, open_output
from cnnbatch.report.pictures import Viewer, viewer_of
from cnnbatch.report.prediction import Prediction
from cnnbatch.storage import Storage

SIDE = 128
"""Pixels of a crop's longer side."""

_TEXT = 34
_AROUND = 0.25  # of a face's sides, shown around it
_LONGEST = 20  # characters of a caption
_QUALITY = 88


def contact_sheet(rows: Sequence[Mapping[str, Any]], storage: Storage) -> bytes:
    """Return the sheet of what `Index.search` found for photos, a JPEG file.

    A row is that of the table; ``query_id`` is the address of the photo, ``query_box`` its face.
    """
    crops = _Crops(storage)
    by_query: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_query.setdefault(row["query"], []).append(row)
    width = 1 + max(map(len, by_query.values()), default=0)
    sheet = Image.new("RGB", (width * SIDE, len(by_query) * (SIDE + _TEXT)), "white")
    for line, found in enumerate(by_query.values()):
        first = found[0]
        name = first["query_id"].rpartition("/")[2]
        _put(sheet, 0, line, crops.of_photo(first["query_key"], first["query_box"]), [name, "searched for"])
        for row in found:
            words = [row["id"], f"{row['rank']}: {row['similarity']:.3f}"]
            _put(sheet, row["rank"], line, crops.of_row(row), words)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


class _Crops:
    """Cuts what was found out of the originals; one that can't be read has no crop."""

    def __init__(self, storage: Storage) -> None:
        self._photos = Viewer(Storage())
        self._output = cache(lambda uri: open_output(uri, storage))
        self._viewer = cache(lambda uri: viewer_of(self._output(uri)))

    def of_photo(self, address: str, box: Mapping[str, float] | None) -> Image.Image | None:
        """Return the crop of a photo that was searched for."""
        return _cut(self._photos.original(Prediction(address, address)), box)

    def of_row(self, row: Mapping[str, Any]) -> Image.Image | None:
        """Return the crop of a row of the index."""
        reader: Reader = self._output(row["output"])
        (ref,) = reader.refs_of_shard(row["part"], [row["row"]])
        if ref is None:
            return None
        prediction = Prediction(row["key"], ref.uri, ref=ref)
        return _cut(self._viewer(row["output"]).original(prediction), row["box"])


def _cut(picture: Image.Image | None, box: Mapping[str, float] | None) -> Image.Image | None:
    """Return a face with a little around it, or the whole picture, small."""
    if picture is None:
        return None
    if box is not None:
        more = _AROUND * max(box["x2"] - box["x1"], box["y2"] - box["y1"])
        left, top = max(0.0, box["x1"] - more), max(0.0, box["y1"] - more)
        right, bottom = min(picture.width, box["x2"] + more), min(picture.height, box["y2"] + more)
        picture = picture.crop((round(left), round(top), max(round(right), 1), max(round(bottom), 1)))
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _put(sheet: Image.Image, column: int, line: int, crop: Image.Image | None, words: Sequence[str]) -> None:
    left, top = column * SIDE, line * (SIDE + _TEXT)
    pen = ImageDraw.Draw(sheet)
    if crop is None:
        pen.rectangle((left + 1, top + 1, left + SIDE - 2, top + SIDE - 2), outline="#999999")
    else:
        sheet.paste(crop, (left + (SIDE - crop.width) // 2, top + (SIDE - crop.height) // 2))
    font = ImageFont.load_default(11)
    for number, text in enumerate(words):
        shown = text if len(text) <= _LONGEST else f"…{clipped(text)[1 - _LONGEST :]}"
        pen.text((left + 3, top + SIDE + 2 + 15 * number), shown, "#1b1d1f", font)
