"""Maps of classes judged by objects with masks, where one ground truth serves several answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cnnbatch.images.painted import VOID, painted
from cnnbatch.metrics import Evaluated, Piece, Schemas
from cnnbatch.metrics.class_maps import ENCODINGS, MapMetric
from cnnbatch.metrics.numbering import Numbering, of_classes
from cnnbatch.metrics.objects import object_fields
from cnnbatch.metrics.semantic import SemanticPartial
from cnnbatch.truth import Class, classes_of
from cnnbatch.truth.classes import BACKGROUND
from cnnbatch.types import Map

Numbers = NDArray[np.uint16]


class ObjectMapMetric(MapMetric):
    """Maps judged by the masks of the objects that the same rows' ``objects`` are judged by.

    What is true of a pixel is in `cnnbatch.images.painted`. An image of which an object has no mask has no
    pixel that counts.
    """

    answer = "objects"

    def applies(self, schemas: Schemas) -> bool:
        """Say whether predictions have maps and masks, and the ground truth has objects."""
        said = schemas.predictions
        has_map = "map" in said.names and said.field("map").type in ENCODINGS
        return has_map and "mask" in object_fields(said) & object_fields(schemas.truth)

    def columns(self, predictions: pa.Schema) -> Sequence[str]:
        """Return that maps are read."""
        return ["map"]

    def numbering(self, piece: Piece) -> Numbering:
        """Return what is judged: those classes of the maps that the ground truth has, and the background."""
        known = {one.name for one in classes_of(piece.truth.schema)} or set(piece.classes or ())
        named = enumerate(piece.classes or ())
        truth = [Class(name, place) for place, name in named if name in known | BACKGROUND]
        return of_classes(truth, piece.map_classes, [VOID])

    def true(self, piece: Piece) -> Iterator[Numbers]:
        """Yield the true maps, whose numbers are places among all of the model's classes."""
        names = piece.classes or ()
        places = {name: place for place, name in enumerate(names)}
        background = next((place for name, place in places.items() if name in BACKGROUND), None)
        sizes = (piece.predictions[name].to_pylist() for name in ("height", "width"))
        stated = (piece.truth[name].to_pylist() for name in ("height", "width"))
        rows = zip(piece.truth["objects"], *sizes, *stated, strict=True)
        for objects, height, width, true_height, true_width in rows:
            size = (height or true_height or 0, width or true_width or 0)
            found = painted(objects.as_py(), places, size, background)
            yield np.full(size, VOID, np.uint16) if found is None else found

    def result(self, merged: SemanticPartial, apply: Map) -> Evaluated:
        """Return the numbers of all images; the table ``classes`` is called ``map_classes``.

        Where no pixel is true background, as of a ground truth that knows stuff, that is no class to judge.
        """
        found = super().result(_without_background(merged), apply)
        tables = dict(found.tables)
        return replace(found, tables={"map_classes": tables.pop("classes"), **tables})


def _without_background(merged: SemanticPartial) -> SemanticPartial:
    """Return the same without a class of the background that no pixel has in truth."""
    true = merged.pixels[0, 1]
    gone = [name in BACKGROUND and not true[place] for place, name in enumerate(merged.names)]
    if not any(gone):
        return merged
    kept = np.flatnonzero(~np.array(gone))
    confusion: Any = merged.confusion.copy()
    classes = len(merged.names)
    confusion[:, classes] += confusion[:, :classes][:, gone].sum(axis=1)
    return replace(
        merged,
        names=tuple(merged.names[place] for place in kept),
        pixels=merged.pixels[..., kept],
        class_boundary=merged.class_boundary[kept],
        class_images=merged.class_images[kept],
        confusion=confusion[kept][:, np.append(kept, (classes, classes + 1))],
    )
