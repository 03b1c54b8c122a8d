"""Draws what was predicted on the originals themselves, as large as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from cnnbatch.output.export.predictions import NotPainted
from cnnbatch.report.context import about_output
from cnnbatch.report.pictures import Viewer
from cnnbatch.report.prediction import drawn, prediction_of
from cnnbatch.sources import source_of

if TYPE_CHECKING:
    from cnnbatch.output.export.predictions import Painter
    from cnnbatch.output.reader import Reader
    from cnnbatch.types import ImageRef


def painter(result: Reader, least: float) -> Painter:
    """Return what draws the predictions of an output, of objects those from the score ``least`` on."""
    storage, about = result.input_storage(), about_output(result, result.storage)
    viewer = Viewer(storage, source_of(result, storage))

    def paint(row: Mapping[str, Any], ref: ImageRef | None) -> tuple[Image.Image, Image.Image]:
        prediction = prediction_of(row, ref, least=least, about=about)
        image = viewer.original(prediction)
        if image is None:
            raise NotPainted(row["key"])
        return image, drawn(image.copy(), prediction)

    return paint
