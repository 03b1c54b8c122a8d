"""An output's predictions as every format wants them: a few hundred rows at a time, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from cnnbatch.config.output import Which
from cnnbatch.errors import UserError
from cnnbatch.images import class_map, rle
from cnnbatch.images.class_map import Numbers
from cnnbatch.output import reader
from cnnbatch.output.folder import Output
from cnnbatch.output.forgotten_rows import are_forgotten
from cnnbatch.output.maps import map_of
from cnnbatch.output.plan_pages import listings_of
from cnnbatch.storage import Storage, normalize
from cnnbatch.truth.classes import NO_CLASS, ModelClasses
from cnnbatch.types import FORGOTTEN, ImageRef

_ROWS = 256  # with their objects as Python values
_SIDES = ("x1", "y1", "x2", "y2")
_ENGINES = ("key", "width", "height", "error", "vanished")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is written: objects from ``score_threshold`` on (None: all), in YOLO's files with ``scores``.

    ``column`` is which of an output's answers is written, where a format holds several; None: the first.
    ``paint`` gives what draws an output's predictions on its images, of objects those from a score on; only
    `pictures` needs it, where ``hide`` says that faces are to be blurred or covered. ``face`` says which of a
    picture's faces `chips` are of.
    """

    score_threshold: float | None = None
    scores: bool = False
    column: str | None = None
    paint: Callable[[reader.Reader, float], Painter] | None = None
    hide: Literal["blur", "cover"] | None = None
    face: Which = "centre"


@dataclass(slots=True)
class ExportCounts:
    """What was written and what was not.

    ``images`` are written with what was predicted, ``failed`` those without by code; ``vanished`` ones are no
    longer in the input, and ``forgotten`` ones are left out of everything; ``unknown`` ones
    the truth's file doesn't name, ``unread`` could not be shown. Of the objects ``low`` are below the
    threshold, ``strange`` no objects, ``stuff`` no things, in formats that have only these. ``bad_masks``
    can't be read or are of another size than their image; ``hidden`` segments have no pixel left to them.
    ``faceless`` images have no face.
    """

    images: int = 0
    objects: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    vanished: int = 0
    forgotten: int = 0
    unknown: int = 0
    low: int = 0
    strange: int = 0
    stuff: int = 0
    unread: int = 0
    bad_masks: int = 0
    hidden: int = 0
    faceless: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """One object: ``box`` is (x1, y1, x2, y2) in pixels, ``keypoints`` are (x, y, visibility).

    ``mask`` is COCO's: ``size`` (height, width) and ``counts``. ``is_thing`` says whether a segment is of a
    thing; None where objects are not segments. Stuff may have no ``score``, which then is NaN.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None = None
    keypoints: Sequence[tuple[float, float, float]] | None = None
    is_thing: bool | None = None


@dataclass(frozen=True, slots=True)
class ImageMap:
    """One image and its map of classes, by their places; of one that failed, the ``error``'s code.

    ``numbers`` decodes the map; it raises UserError where that is damaged.
    """

    key: str
    width: int
    height: int
    numbers: Callable[[], Numbers]
    error: str | None = None


class NotPainted(Exception):
    """Why an image can't be shown, in words."""


class Painter(Protocol):
    """Draws predictions on the images that they are of."""

    def __call__(self, row: Mapping[str, Any], ref: ImageRef | None) -> tuple[Image.Image, Image.Image]:
        """Return an image, upright and as large as it is, and a copy with what ``row`` predicts drawn on it.

        Raises NotPainted.
        """


@dataclass(frozen=True, slots=True)
class ImageObjects:
    """One image, its size in pixels and what was found in it; of one that failed, the ``error``'s code."""

    key: str
    width: int
    height: int
    objects: Sequence[Found]
    error: str | None = None


class Predictions:
    """The finished parts of one output; raises UserError where there are none.

    ``column`` is the one that a format writes, "" where it writes none apart from all others; ``others`` are
    those that it could write instead.
    """

    def __init__(self, uri: str, storage: Storage, options: ExportOptions) -> None:
        self.uri = normalize(uri)
        self.options = options
        self.counts = ExportCounts()
        self._counting_masks = Lock()
        self.with_stuff = False
        self.column, self.others = "", list[str]()
        self.result = reader.open_output(uri, storage)
        self.output = Output(self.uri, storage)
        self.footers = self.result.receipts()
        self.columns = self.result.schema.names

    @property
    def parts(self) -> range:
        """The numbers of the parts, as in ``footers``."""
        return range(len(self.footers))

    @property
    def are_objects(self) -> bool:
        """Whether the column that is written has objects."""
        return self.has("box")

    def has(self, field: str) -> bool:
        """Say whether the column that is written has objects, and these a field, such as ``mask``."""
        kind: Any = self.result.schema.field(self.column).type if self.column else pa.null()
        elements = kind.value_type if pa.types.is_list(kind) else pa.null()
        return pa.types.is_struct(elements) and any(one.name == field for one in elements)

    def progress(self) -> str | None:
        """Return how far the output's run has come; None where it has ended, or where no plan tells."""
        listings = listings_of(self.output)
        if not listings:
            return None
        done, planned = sum(footer.rows for footer in self.footers), listings[-1].complete()
        if planned is None:
            return f"{done:,} images so far, and the listing of the input goes on"
        return f"{done:,} of {planned['images']:,} images so far" if done < planned["images"] else None

    def keys(self) -> Iterator[str]:
        """Yield the keys of all images that are in the input still."""
        for part in self.parts:
            for batch in self.batches(["key", "error", "vanished"], part):
                keys: list[Any] = batch.filter(pc.invert(batch["vanished"]))["key"].to_pylist()
                yield from keys

    def batches(self, columns: Sequence[str], part: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a part, few at a time; one that is forgotten is as one that is gone."""
        for batch in self.result.batches(columns, part):
            rows = _without_forgotten(batch)
            yield from (rows.slice(start, _ROWS) for start in range(0, rows.num_rows, _ROWS))

    def images(self, part: int) -> Iterator[ImageObjects | None]:
        """Yield one a row of a part: the image with its objects, None where it is gone from the input."""
        for batch in self.batches([*_ENGINES, self.column], part):
            columns = [batch[name].to_pylist() for name in _ENGINES[:3]]
            codes, gone = self.count(batch), batch["vanished"].to_numpy(zero_copy_only=False)
            rows = zip(*columns, self.found(batch, gone), codes, strict=True)
            yield from (
                None if vanished else ImageObjects(*row) for row, vanished in zip(rows, gone, strict=True)
            )

    def maps(self, part: int) -> Iterator[ImageMap | None]:
        """Yield one a row of a part: the image with its map, None where it is gone from the input."""
        for batch in self.batches([*_ENGINES, "map"], part):
            columns = [batch[name].to_pylist() for name in (*_ENGINES[:3], "map")]
            rows = zip(*columns, self.count(batch), batch["vanished"].to_pylist(), strict=True)
            for key, width, height, value, code, vanished in rows:
                numbers = partial(self._numbers, key, value, (height, width))
                yield None if vanished else ImageMap(key, width, height, numbers, code)

    def _numbers(self, key: str, value: Any, size: tuple[int, int]) -> Numbers:
        """Return a map of any encoding."""
        try:
            return map_of(value, self.output.storage, self.uri, size)
        except class_map.NotAMap as error:
            raise UserError(
                f"the map of {key} can't be read: {error}\n  what to do: make the output anew"
            ) from None

    def map_names(self) -> list[str]:
        """Return the names of a map's numbers: the model's, in its order."""
        model = self.model()
        names = model.names[: model.maps or None]
        return list(names) or [str(number) for number in range(class_map.NONE)]

    def count(self, batch: pa.RecordBatch) -> list[str | None]:
        """Count the images of a batch; return the error's code of each."""
        codes: list[str | None] = pc.struct_field(batch["error"], "code").to_pylist()
        gone = batch["vanished"].to_pylist()
        for code, vanished in zip(codes, gone, strict=True):
            if code == FORGOTTEN:
                self.counts.forgotten += 1
            elif vanished:
                self.counts.vanished += 1
            elif code is None:
                self.counts.images += 1
            else:
                self.counts.failed[code] += 1
        return codes

    def found(self, batch: pa.RecordBatch, gone: np.ndarray) -> list[list[Found]]:
        """Return the objects of each row that are written; none of one that is ``gone``, bool [N]."""
        column: Any = batch[self.column]
        counts = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        flat = column.flatten()
        kept = self._kept(flat, np.repeat(gone, counts))
        ends = np.concatenate([[0], np.cumsum(kept)])[np.cumsum([0, *counts])].tolist()
        objects = _decode(flat.filter(pa.array(kept)))
        return [objects[start:end] for start, end in zip(ends, ends[1:], strict=False)]

    def _kept(self, flat: Any, gone: np.ndarray) -> np.ndarray:
        """Say of each object whether it is written, bool [N], and count the others."""
        scores, things = _numbers(flat, "score"), self._things(flat)
        finite = (np.isfinite(scores) | (things == 0)) & np.asarray(pc.struct_field(flat, "label").is_valid())
        for side in _SIDES:
            finite &= np.isfinite(_numbers(flat, ["box", side]))
        if self.has("keypoints"):
            finite &= _finite_points(pc.struct_field(flat, "keypoints"))
        low = np.zeros(len(flat), bool)
        if threshold := self.options.score_threshold:
            # In the scores' own precision: one that is written as 0.9 isn't below 0.9.
            low = finite & (scores.astype(np.float32) < np.float32(threshold))
        stuff = finite & ~gone & (things == 0) & (not self.with_stuff)
        kept: np.ndarray = finite & ~low & ~gone & ~stuff
        self.counts.stuff += int(stuff.sum())
        self.counts.strange += int((~finite & ~gone).sum())
        self.counts.low += int((low & ~gone & ~stuff).sum())
        self.counts.objects += int(kept.sum())
        return kept

    def pixels(self, one: Found, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Return the mask of an object, of an image of ``size`` (height, width); None where it has none.

        None also, and counted, where it can't be read or is of another size. May be called in any thread.
        """
        if one.mask is None:
            return None
        inside = rle.pixels(one.mask) if tuple(one.mask["size"]) == size else None
        if inside is None:
            with self._counting_masks:
                self.counts.bad_masks += 1
        return inside

    def _things(self, flat: Any) -> np.ndarray:
        """Say of each object whether it is a thing: 1, stuff: 0, or neither: -1; int [N]."""
        if not self.has("is_thing"):
            return np.full(len(flat), -1)
        known = pc.struct_field(flat, "is_thing").cast(pa.int8())
        things: np.ndarray = pc.fill_null(known, -1).to_numpy(zero_copy_only=False)
        return things

    def leave_out(self, image: ImageObjects | ImageMap) -> None:
        """Count an image, and what was found in it, as unknown to the truth instead."""
        self.counts.unknown += 1
        self.counts.objects -= len(image.objects) if isinstance(image, ImageObjects) else 0
        if image.error is None:
            self.counts.images -= 1
        else:
            self.counts.failed[image.error] -= 1

    def model(self) -> ModelClasses:
        """Return the classes that the model gave with the output; none where it has none."""
        kept = self.output.decided("classes") or {"names": ()}
        return ModelClasses(
            kept["names"], kept.get("ids") or (), kept.get("aliases") or {}, kept.get("maps") or 0
        )

    def class_names(self) -> list[str]:
        """Return the model's classes in its order, then what other labels the objects have.

        The labels alone are read for it, of all parts.
        """
        labels = {label for part in self.parts for label in self._labels(part)}
        names = dict.fromkeys(name for name in self.model().names if name not in NO_CLASS)
        return [*names, *sorted(labels - names.keys())]

    def _labels(self, part: int) -> set[str]:
        found: set[str | None] = set()
        with self.output.storage.open(self.footers[part].part) as file:
            parquet = pq.ParquetFile(file)
            leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
            labels = [
                leaf for leaf in leaves if leaf.startswith(f"{self.column}.") and leaf.endswith(".label")
            ]
            for batch in parquet.iter_batches(columns=labels):
                objects: Any = batch[self.column]
                found.update(pc.struct_field(objects.flatten(), "label").unique().to_pylist())
        return {label for label in found if label is not None}


def _without_forgotten(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows in which those that are forgotten are marked as gone from the input."""
    forgotten = are_forgotten(batch["error"])
    if not forgotten.any():
        return batch
    gone = batch["vanished"].to_numpy(zero_copy_only=False) | forgotten
    place = batch.schema.get_field_index("vanished")
    return batch.set_column(place, batch.schema.field(place), pa.array(gone))


def _numbers(flat: Any, path: str | list[str]) -> np.ndarray:
    """Return a field of the objects as float64 [N], NaN where it is null."""
    values: np.ndarray = pc.struct_field(flat, path).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _finite_points(lists: Any) -> np.ndarray:
    """Say of each object whether all coordinates of its points are finite, bool [N]."""
    flat = lists.flatten()
    good = np.logical_and.reduce([np.isfinite(_numbers(flat, name)) for name in ("x", "y", "visibility")])
    finite = np.ones(len(lists), bool)
    finite[pc.list_parent_indices(lists).to_numpy()[~good]] = False
    return finite


def _decode(flat: Any) -> list[Found]:
    """Return objects as values; scores have the fewest digits that float32 tells apart; NaN is none."""
    names = [one.name for one in flat.type]
    boxes = zip(*(_numbers(flat, ["box", side]).tolist() for side in _SIDES), strict=True)
    texts = pc.fill_null(pc.struct_field(flat, "score").cast(pa.string()), "nan").to_pylist()
    scores = [float(text) for text in texts]
    things = pc.struct_field(flat, "is_thing").to_pylist() if "is_thing" in names else [None] * len(flat)
    masks = pc.struct_field(flat, "mask").to_pylist() if "mask" in names else [None] * len(flat)
    lists = pc.struct_field(flat, "keypoints").to_pylist() if "keypoints" in names else [None] * len(flat)
    labels = pc.struct_field(flat, "label").to_pylist()
    points = [some and [(one["x"], one["y"], one["visibility"]) for one in some] for some in lists]
    return list(map(Found, labels, scores, boxes, masks, points, things))
