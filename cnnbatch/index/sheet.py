"""A contact sheet: of each query its crop, and beside it those of what was found, as one JPEG file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cnnbatch.humanize import clipped
from cnnbatch.index.originals import Originals, cut_out
from cnnbatch.report.pictures import Viewer
from cnnbatch.report.prediction import Prediction
from cnnbatch.storage import Storage

SIDE = 128
"""Pixels of a crop's longer side."""

_TEXT = 34
_LONGEST = 20  # characters of a caption
_QUALITY = 88


def contact_sheet(rows: Sequence[Mapping[str, Any]], originals: Originals) -> bytes:
    """Return the sheet of what `Index.search` found for photos, a JPEG file.

    A row is that of the table; ``query_id`` is the address of the photo, ``query_box`` its face. What can't
    be shown is an empty frame, and ``originals`` say why.
    """
    by_query: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_query.setdefault(row["query"], []).append(row)
    width = 1 + max(map(len, by_query.values()), default=0)
    sheet = Image.new("RGB", (width * SIDE, len(by_query) * (SIDE + _TEXT)), "white")
    for line, found in enumerate(by_query.values()):
        first = found[0]
        name = first["query_id"].rpartition("/")[2]
        _put(sheet, 0, line, _of_photo(first["query_key"], first["query_box"]), [name, "searched for"])
        for row in found:
            words = [row["id"], f"{row['rank']}: {row['similarity']:.3f}"]
            _put(sheet, row["rank"], line, originals.crop(row, SIDE), words)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _of_photo(address: str, box: Mapping[str, float] | None) -> Image.Image | None:
    """Return the crop of a photo that was searched for."""
    picture = Viewer(Storage()).original(Prediction(address, address))
    return None if picture is None else cut_out(picture, box, SIDE)


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
