"""Pictures for people: what was predicted drawn on the originals, objects cut out of them, or faces hidden.

The originals are read again, one after the other in a few threads; what reads and draws them is given, since
an output does not know where its images lie.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.errors import UserError
from cnnbatch.output.export.format import ExportFormat
from cnnbatch.output.export.places import Tree, encoded, path_of, require_free, require_unique
from cnnbatch.output.export.predictions import Found, NotPainted, Painter, Predictions
from cnnbatch.storage import Storage
from cnnbatch.truth import FACE, SURE
from cnnbatch.types import ImageRef

_THREADS = 4
_AT_ONCE = 16  # images whose pictures are in memory, at most
_QUALITY = 90
_LONGEST = 60  # of a class's name in that of a file
_AROUND = 0.2  # of a face's sides, hidden around it
_LEFT = 8  # mean colours a side of a blurred face


class Pictures(ExportFormat):
    """A picture an image with what was predicted on it, and one of each object that has a mask or a box."""

    kinds = ("objects", "boxes", "map")
    failed = "they have no picture"
    least_score = SURE
    stuff = True
    bad_masks = "not drawn, and their cut-outs are the whole box"

    def write(self, predictions: Predictions, storage: Storage, to: str) -> None:
        """Write ``overlays/KEY.jpg`` of every image and ``cutouts/KEY/NUMBER CLASS.png`` of its things.

        A cut-out is as large as the object's box; where there is a mask, the rest of it is transparent.
        Objects count from a score of 0.5 on, unless the options say another. Where the options hide faces,
        write ``pictures/KEY.jpg`` of every image instead, with all its faces blurred or covered.
        """
        options = predictions.options
        if options.paint is None:
            raise UserError(
                "--format pictures needs what reads the images again\n"
                "  what to do: call cnnbatch export, or give cnnbatch.report.painter.painter as `paint`"
            )
        require_free(storage, to)
        require_unique(predictions.keys, _path, "")
        paint = options.paint(predictions.result, options.score_threshold or 0)
        with Tree(storage, to, waiting=_AT_ONCE) as tree, ThreadPoolExecutor(_THREADS, "pictures") as pool:
            for part in predictions.parts:
                for rows in _some(predictions, part):
                    draw = _hidden if options.hide else _pictures
                    made = pool.map(partial(_files, draw, predictions, paint), rows)
                    for files in made:
                        predictions.counts.unread += files is None
                        for name, data in files or ():
                            tree.write(name, data)


Row = tuple[Mapping[str, Any], Sequence[Found], ImageRef | None]


def _some(predictions: Predictions, part: int) -> Iterator[Sequence[Row]]:
    """Yield the rows of a part that did not fail, with their objects and where they lie, some at a time."""
    start = 0
    columns = [name for name in predictions.columns if name not in predictions.others]
    for batch in predictions.batches(columns, part):
        codes, gone = predictions.count(batch), batch["vanished"].to_numpy(zero_copy_only=False)
        found = predictions.found(batch, gone) if predictions.are_objects else [[] for _ in codes]
        places = [place for place, code in enumerate(codes) if code is None and not gone[place]]
        refs = predictions.result.refs(part, [start + place for place in places])
        rows: list[Row] = [
            (batch.slice(place, 1).to_pylist()[0], found[place], ref)
            for place, ref in zip(places, refs, strict=True)
        ]
        yield from (rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE))
        start += batch.num_rows


File = tuple[str, bytes]
Draw = Callable[[Predictions, str, Sequence[Found], Image.Image, Image.Image], list[File]]


def _files(draw: Draw, predictions: Predictions, paint: Painter, row: Row) -> list[File] | None:
    """Return the files of one image; None where it can't be read."""
    values, objects, ref = row
    try:
        image, overlay = paint(values, ref)
    except NotPainted:
        return None
    return draw(predictions, _path(values["key"]), objects, image, overlay)


def _hidden(
    predictions: Predictions, path: str, objects: Sequence[Found], image: Image.Image, _: Image.Image
) -> list[File]:
    """Return the image with its faces hidden."""
    for one in objects:
        if one.label == FACE:
            hide(image, one.box, predictions.options.hide == "cover")
    return [(f"pictures/{path}.jpg", _file(image, "JPEG", quality=_QUALITY))]


def hide(image: Image.Image, box_xyxy: tuple[float, float, float, float], cover: bool) -> None:
    """Blur a part of an image, or cover it in black, and a fifth of its sides around it.

    Blurred, eight mean colours a side are left of it, so that nothing finer can be brought back.
    """
    left, top, right, bottom = box_xyxy
    across, down = _AROUND * (right - left), _AROUND * (bottom - top)
    edges = (
        max(0, floor(left - across)),
        max(0, floor(top - down)),
        min(image.width, ceil(right + across)),
        min(image.height, ceil(bottom + down)),
    )
    size = edges[2] - edges[0], edges[3] - edges[1]
    if min(size) <= 0:
        return
    if cover:
        image.paste("black", edges)
        return
    few = image.crop(edges).resize((min(_LEFT, size[0]), min(_LEFT, size[1])), Image.Resampling.BOX)
    image.paste(few.resize(size, Image.Resampling.BILINEAR), edges)


def _pictures(
    predictions: Predictions, path: str, objects: Sequence[Found], image: Image.Image, overlay: Image.Image
) -> list[File]:
    """Return the image with what was predicted, and its things."""
    files = [(f"overlays/{path}.jpg", _file(overlay, "JPEG", quality=_QUALITY))]
    for number, one in enumerate(objects):
        inside = predictions.pixels(one, (image.height, image.width))
        cut = cut_out(image, one.box, inside) if one.is_thing is not False else None
        if cut is not None:
            name = encoded(one.label).replace("/", "%2F")[:_LONGEST]
            files.append((f"cutouts/{path}/{number:03} {name}.png", _file(cut, "PNG")))
    return files


def cut_out(
    image: Image.Image, box_xyxy: tuple[float, float, float, float], inside: NDArray[np.bool_] | None
) -> Image.Image | None:
    """Return the part of an image in an object's box, transparent where its mask is not; None of no area.

    ``inside`` are the pixels of the mask, as large as the image; None where the object has no mask.
    """
    (left, top), (right, bottom) = np.floor(box_xyxy[:2]).astype(int), np.ceil(box_xyxy[2:]).astype(int)
    box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    cut = image.crop(box)
    if inside is not None:
        cut.putalpha(Image.fromarray(np.uint8(255) * inside[box[1] : box[3], box[0] : box[2]]))
    return cut


def _path(key: str) -> str:
    return path_of(key, "images")


def _file(image: Image.Image, format: str, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **how)
    return sink.getvalue()
