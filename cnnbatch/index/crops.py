"""Crops of what an index found, cut out of the originals where these can still be read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from PIL import Image

from cnnbatch.output.reader import Reader, open_output
from cnnbatch.report.pictures import Viewer, viewer_of
from cnnbatch.report.prediction import Prediction
from cnnbatch.storage import Storage

_AROUND = 0.25  # of a face's sides, shown around it


class Crops:
    """Cuts faces out of originals, ``side`` pixels the longer side; of whole pictures it gives small ones.

    ``storage`` is that of the outputs that an index is made of. What can't be read has no crop.
    """

    def __init__(self, storage: Storage, side: int) -> None:
        self._side = side
        self._photos = Viewer(Storage())
        self._output = cache(lambda uri: open_output(uri, storage))
        self._viewer = cache(lambda uri: viewer_of(self._output(uri)))

    def of_photo(self, address: str, box: Mapping[str, float] | None) -> Image.Image | None:
        """Return the crop of a photo that was searched for."""
        return self._cut(self._photos.original(Prediction(address, address)), box)

    def of_row(self, row: Mapping[str, Any]) -> Image.Image | None:
        """Return the crop of a row of the index, as `Index.search` gives it."""
        reader: Reader = self._output(row["output"])
        (ref,) = reader.refs_of_shard(row["part"], [row["row"]])
        if ref is None:
            return None
        prediction = Prediction(row["key"], ref.uri, ref=ref)
        return self._cut(self._viewer(row["output"]).original(prediction), row["box"])

    def _cut(self, picture: Image.Image | None, box: Mapping[str, float] | None) -> Image.Image | None:
        """Return a face with a little around it, or the whole picture, small."""
        if picture is None:
            return None
        if box is not None:
            more = _AROUND * max(box["x2"] - box["x1"], box["y2"] - box["y1"])
            left, top = max(0.0, box["x1"] - more), max(0.0, box["y1"] - more)
            right, bottom = min(picture.width, box["x2"] + more), min(picture.height, box["y2"] + more)
            picture = picture.crop((round(left), round(top), max(round(right), 1), max(round(bottom), 1)))
        scale = self._side / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        return picture.resize(size, Image.Resampling.LANCZOS)
