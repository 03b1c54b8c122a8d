"""A contact sheet: crops with a few words below each, line by line, as one JPEG file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cnnbatch.humanize import clipped
from cnnbatch.index.originals import Originals, cut_out
from cnnbatch.report.pictures import Viewer
from cnnbatch.report.prediction import Prediction
from cnnbatch.storage import Storage

SIDE = 128
"""Pixels of a crop's longer side."""

COLUMNS = 8
"""Crops of a line, where nothing says how many belong together."""

_TEXT = 34
_TITLE = 26
_LONGEST = 20  # characters of a caption
_QUALITY = 88
_INK, _FRAME = "#1b1d1f", "#999999"


@dataclass(frozen=True, slots=True)
class Cell:
    """A crop of at most `SIDE` pixels, None for what can't be shown, and the two lines below it."""

    crop: Image.Image | None
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Band:
    """Lines of cells, below a title where there is one."""

    lines: Sequence[Sequence[Cell]]
    title: str = ""

    @classmethod
    def of(cls, cells: Sequence[Cell], title: str) -> Band:
        """Return a band of cells in lines of `COLUMNS`."""
        return cls([cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)], title)

    @property
    def columns(self) -> int:
        """Cells of its longest line; a title has room, too."""
        return max([COLUMNS if self.title else 1, *map(len, self.lines)])

    @property
    def height(self) -> int:
        """Pixels from its title to its last line."""
        return (_TITLE if self.title else 0) + len(self.lines) * (SIDE + _TEXT)


def contact_sheet(rows: Sequence[Mapping[str, Any]], originals: Originals) -> bytes:
    """Return the sheet of what `Index.search` found for photos: of each query a line, its own crop first.

    A row is that of the table; ``query_id`` is the address of the photo, ``query_box`` its face. What can't
    be shown is an empty frame, and ``originals`` say why.
    """
    by_query: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_query.setdefault(row["query"], []).append(row)
    return jpeg([Band([_line(found, originals) for found in by_query.values()])])


def jpeg(bands: Sequence[Band]) -> bytes:
    """Return bands, one below the other, as a JPEG file."""
    width = SIDE * max((band.columns for band in bands), default=1)
    sheet = Image.new("RGB", (width, sum(band.height for band in bands) or 1), "white")
    top = 0
    for band in bands:
        _put_band(sheet, top, band)
        top += band.height
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _line(found: Sequence[Mapping[str, Any]], originals: Originals) -> list[Cell]:
    """Return the cells of a query and of what was found for it."""
    first = found[0]
    name = first["query_id"].rpartition("/")[2]
    query = Cell(_of_photo(first["query_key"], first["query_box"]), [name, "searched for"])
    words = [[row["id"], f"{row['rank']}: {row['similarity']:.3f}"] for row in found]
    crops = (originals.crop(row, SIDE) for row in found)
    return [query, *map(Cell, crops, words)]


def _of_photo(address: str, box: Mapping[str, float] | None) -> Image.Image | None:
    """Return the crop of a photo that was searched for."""
    picture = Viewer(Storage()).original(Prediction(address, address))
    return None if picture is None else cut_out(picture, box, SIDE)


def _put_band(sheet: Image.Image, top: int, band: Band) -> None:
    if band.title:
        ImageDraw.Draw(sheet).text((3, top + 6), band.title, _INK, ImageFont.load_default(14))
        top += _TITLE
    for number, line in enumerate(band.lines):
        for column, cell in enumerate(line):
            _put(sheet, column * SIDE, top + number * (SIDE + _TEXT), cell)


def _put(sheet: Image.Image, left: int, top: int, cell: Cell) -> None:
    pen = ImageDraw.Draw(sheet)
    if cell.crop is None:
        pen.rectangle((left + 1, top + 1, left + SIDE - 2, top + SIDE - 2), outline=_FRAME)
    else:
        sheet.paste(cell.crop, (left + (SIDE - cell.crop.width) // 2, top + (SIDE - cell.crop.height) // 2))
    font = ImageFont.load_default(11)
    for number, text in enumerate(cell.words):
        shown = text if len(text) <= _LONGEST else f"…{clipped(text)[1 - _LONGEST :]}"
        pen.text((left + 3, top + SIDE + 2 + 15 * number), shown, _INK, font)
