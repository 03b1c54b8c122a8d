"""The pictures that rows of an index name, read from where their outputs say that they lie.

An index in a bucket or on the web may be anybody's, as may an output there: neither makes anything of this
machine, or of its network, be read, unless that is allowed. See `cnnbatch.storage.reach`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.humanize import counted
from cnnbatch.index.manifest import NAME
from cnnbatch.output.reader import Reader, open_output
from cnnbatch.report.pictures import WHOLE, Viewer, viewer_of
from cnnbatch.report.prediction import Prediction
from cnnbatch.storage import (
    Allowed,
    Forbidden,
    NotFound,
    OutOfReach,
    Storage,
    Unreadable,
    join,
    redact,
)

CORNERS = ("x1", "y1", "x2", "y2")
AROUND = 0.25
"""So much of a face's longer side is shown around it."""


class Originals:
    """Cuts faces, or whole pictures, out of the originals; `problems` says which can't be shown, and why."""

    def __init__(self, index: str, storage: Storage, allow: Collection[Allowed] = ()) -> None:
        self._allow = allow
        self._storage = storage.for_list(join(index, NAME), allow)
        self._opened = cache(self._open)
        self._reasons: dict[str, str] = {}
        self._counts = Counter[str]()

    def crop(self, row: Mapping[str, Any], side: int) -> Image.Image | None:
        """Return what a row of the index shows, at most ``side`` pixels wide and high; None: see `problems`.

        A row has ``output`` (an address), ``part``, ``row``, ``key`` and ``box``, as `Index.search` has them.
        """
        found = self._whole(row)
        if isinstance(found, str):
            self._reasons.setdefault(row["output"], found)
            self._counts[row["output"]] += 1
            return None
        return cut_out(found, row["box"], side)

    def problems(self) -> Iterator[str]:
        """Yield of each output of which pictures could not be shown how many, with the first reason."""
        for output, reason in self._reasons.items():
            yield f"{counted(self._counts[output], 'picture')} of {redact(output)} not shown: {reason}"

    def _whole(self, row: Mapping[str, Any]) -> Image.Image | str:
        """Return the picture that a row is of, or why it can't be shown."""
        opened = self._opened(row["output"])
        if isinstance(opened, str):
            return opened
        reader, viewer = opened
        (ref,) = reader.refs_of_shard(row["part"], [row["row"]])
        if ref is None:
            return "its plan does not say where they lie"
        if viewer.reach is not None and (needed := viewer.reach.lacks(ref.uri)):
            return _refused(ref.uri, needed)
        found = viewer.picture(Prediction(row["key"], ref.uri, ref=ref), WHOLE, draw=False)
        return found.image or f"{redact(ref.uri)}: {found.reason}"

    def _open(self, output: str) -> tuple[Reader, Viewer] | str:
        """Return what reads an output and its originals, or why it can't be read."""
        try:
            reader = open_output(output, self._storage)
            return reader, viewer_of(reader, self._allow)
        except OutOfReach:
            assert self._storage.reach is not None  # Nothing else raises it.
            return _refused(output, self._storage.reach.lacks(output) or "private")
        except (UserError, EnvironmentFault, NotFound, Forbidden, Unreadable) as error:
            return str(error).partition("\n")[0]


def cut_out(picture: Image.Image, box: Mapping[str, float] | None, side: int) -> Image.Image:
    """Return a face with a little around it, or the whole picture, at most ``side`` pixels wide and high.

    ``box`` has ``x1, y1, x2, y2`` in pixels of the upright picture; what of it lies outside is left out, and
    one that is no box is of no use. Small faces are enlarged.
    """
    picture = picture if box is None else picture.crop(_within(picture, [box[name] for name in CORNERS]))
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _within(picture: Image.Image, corners: Sequence[float]) -> tuple[int, int, int, int]:
    """Return a box with a little around it, in whole pixels of the picture."""
    x1, y1, x2, y2 = np.nan_to_num(np.asarray(corners, np.float64)).tolist()
    more, (width, height) = AROUND * max(x2 - x1, y2 - y1), picture.size
    left, top = (round(min(max(low - more, 0), end - 1)) for low, end in ((x1, width), (y1, height)))
    right, bottom = (round(min(max(high + more, 0), end)) for high, end in ((x2, width), (y2, height)))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _refused(uri: str, needed: Allowed) -> str:
    return (
        f"{redact(uri)} is named by an index, or by an output, that lies where others may have put it; "
        f"where it is to be trusted, give --allow {needed}"
    )
