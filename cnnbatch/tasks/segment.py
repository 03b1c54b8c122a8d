"""Gives a class to every pixel of a picture.

A class is chosen at the original's size: logits are enlarged before the largest is taken, on the device, so
that only one number a pixel leaves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from cnnbatch.errors import UserError
from cnnbatch.models.trained_files import TrainedColour, TrainedDeviations, TrainedInput, TrainedSize
from cnnbatch.output.assets import as_asset
from cnnbatch.tasks.weighted import Side, Size, WeightedTask, lists_of
from cnnbatch.truth import BOX, MAP, MAP_CLASSES, MAP_RUNS
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Runtime

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from cnnbatch.config.train import Train
    from cnnbatch.images.class_map import Numbers
    from cnnbatch.models import Choice, Segmenter
    from cnnbatch.tasks.recipes.recipe import Recipe, TrainingData
    from cnnbatch.types import Image, Prepared

Scale = Annotated[float, Field(ge=0.1, le=10)]
Fraction = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_LONGEST = 8  # times the shorter side: a longer picture is made smaller, which bounds its memory
_REGION: list[pa.Field[Any]] = [pa.field("score", pa.float32()), pa.field("box", BOX)]
_MAPS: Mapping[str, pa.Field[Any]] = {
    "png": pa.field("map", MAP),
    "rle": pa.field("map", MAP_RUNS),
    "asset": as_asset(pa.field("map", MAP), "png"),
}


class SegmenterInput(TrainedInput):
    """The fields of `cnnbatch.models.Resizing` that a training may change."""

    fit: Literal["sides", "stretch", "letterbox", "own", "multiples"]
    size: TrainedSize | None = None
    mean: TrainedColour
    std: TrainedDeviations

    @model_validator(mode="after")
    def _can_be_applied(self) -> Self:
        if self.size is None and self.fit not in ("own", "multiples"):
            raise ValueError(f"expected a size beside fit {self.fit!r}")
        return self


class Segment(WeightedTask):
    """Semantic segmentation; ``classes`` are named in the network's order, a background among them."""

    outside_fingerprint: ClassVar[frozenset[str]] = frozenset({"aliases", "storage"})
    shard_size: ClassVar[int] = 250
    batch: ClassVar[Mapping[str, int]] = {"cuda": 8, "mps": 2, "cpu": 2}
    prepares_on_device: ClassVar[bool] = True
    trained_to: ClassVar[str] = "segment"
    trained_input: ClassVar[type[TrainedInput]] = SegmenterInput
    adapters: ClassVar[tuple[str, ...]] = ("segment",)

    name: str = "segment"
    model: str
    """A segmenter of torchvision, ``fcn8s_``, ``unet_`` or ``pyramid_`` with a classifier of torchvision
    behind, ``segnet``, ``onnx``, or ``mypackage.module:build``."""
    adapter: Literal["segment"] | None = None
    map: Literal["png", "rle", "asset"] = "png"
    """How the class of every pixel is written: as a PNG file in the row, as COCO's run lengths of each class,
    or as a PNG file of its own below the output, whose address the row has."""
    size: Literal["own"] | Side | Size | None = None
    """The input's size where not the model's: ``own`` is the picture's, a number the shorter side's, two are
    the (height, width) that it is stretched to."""
    mean: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)] | None = None
    """The mean of each colour (red, green, blue) as a part of 1, where not the model's."""
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None = None
    """The deviation of each colour."""
    flips: bool = False
    """Average the probabilities of the picture and of its mirror image."""
    scales: Annotated[tuple[Scale, ...], Field(strict=False, min_length=1, max_length=16)] = (1.0,)
    """Average the probabilities of the input at these parts of its size."""
    tile: Annotated[int, Field(ge=64, le=16_384)] | None = None
    """Large inputs go through the network in tiles of so many pixels a side; without it, whole."""
    overlap: Annotated[int, Field(ge=0, le=4096)] = 64
    """How many pixels a tile reaches into each of its neighbours."""
    uncertain: Annotated[int, Field(ge=0, le=64)] = 0
    """How many of the least certain regions are written, each an eighth of the picture's sides."""
    aliases: dict[str, str | None] = {}
    """Of the truth's classes, the model's name where it differs, or null where the model has none."""

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.tile is not None and self.tile < 2 * self.overlap + 32:
            raise ValueError(
                f"expected task.tile to be at least twice task.overlap and 32 more, {2 * self.overlap + 32}; "
                f"got {self.tile}"
            )
        if self.tile is not None and self.scales != (1.0,):
            raise ValueError(
                "tiles are taken of the input at its own size; expected task.scales to be left out"
            )
        return self

    def columns(self) -> pa.Schema:
        """Return ``map``, ``map_classes``, ``confidence`` and, where they are asked for, ``uncertain``."""
        fields = [
            _MAPS[self.map],
            pa.field("map_classes", MAP_CLASSES),
            pa.field("confidence", pa.float32()),
        ]
        if self.uncertain:
            fields.append(pa.field("uncertain", pa.list_(pa.struct(_REGION))))
        return pa.schema(fields)

    def load(self, runtime: Runtime) -> PixelClassifier:
        """Build the network with its weights on ``runtime.device``."""
        from cnnbatch.models.segmenters import build_segmenter

        return PixelClassifier(self, build_segmenter(self.choice(self._input())), runtime)

    def require_weights(self) -> None:
        """Build the segmenter, and forget it."""
        from cnnbatch.models.segmenters import build_segmenter

        build_segmenter(self.choice(self._input()))

    def require_weights_to_train(self) -> None:
        """Build the segmenter as a training begins with it, and forget it."""
        from cnnbatch.tasks.recipes.segmenter_start import require_weights

        require_weights(self._begun_with())

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how a segmenter learns the classes of ``data``; UserError for one that does not train."""
        from cnnbatch.tasks.recipes.segmentation import SegmenterRecipe

        if self.aliases:
            raise UserError(
                "task.aliases: a training learns the classes by the names that its ground truth has\n"
                "  what to do: leave it out, and give input.relabel where they are to be others"
            )
        return SegmenterRecipe(self._begun_with(), spec, data)

    def _begun_with(self) -> Choice:
        """Return what a training begins with; the job's classes are those to be learned."""
        without = self.model_copy(update={"classes": None})
        return without.choice(self._input(), trains=True)

    def _input(self) -> dict[str, Any]:
        """Return the fields of `cnnbatch.models.Resizing` that the job changes."""
        found = {"mean": self.mean, "std": self.std}
        return {**self._sides(), **{name: value for name, value in found.items() if value is not None}}

    def _sides(self) -> dict[str, Any]:
        if self.size is None:
            return {}
        if self.size == "own":
            return {"fit": "own"}
        if isinstance(self.size, int):
            return {"fit": "sides", "size": (self.size, _LONGEST * self.size), "rounding": "exact"}
        return {"fit": "stretch", "size": self.size}


class PixelClassifier:
    """A segmentation network on one device; see `cnnbatch.tasks.Model` for its steps."""

    def __init__(self, task: Segment, segmenter: Segmenter, runtime: Runtime) -> None:
        from cnnbatch.models.pixel_network import PixelNetwork, tiling
        from cnnbatch.models.views import Views

        if task.uncertain and not segmenter.is_scored:
            raise UserError(
                f"task.uncertain: {task.weights} gives numbers of classes, which do not tell how sure it is\n"
                "  what to do: leave it out, or export the file with its logits"
            )
        self._task, self._schema = task, task.columns()
        self._how, self._is_scored = segmenter.resizing, segmenter.is_scored
        views = Views(task.scales, task.flips, self._how.divisor)
        cut = tiling(segmenter, task.tile, task.overlap, runtime.batch) if task.tile else None
        self._network = PixelNetwork(segmenter, runtime, views, cut)
        self._names = pa.array(segmenter.classes, pa.string())
        self.licence, self.notes = segmenter.licence, segmenter.notes
        self.classes = ModelClasses(segmenter.classes, segmenter.ids, segmenter.aliases)
        self.identity: Mapping[str, str] = {
            "weights": segmenter.weights,
            "preprocessing": self._how.describe(),
            "library": segmenter.library,
            "classes": hashlib.sha256("\n".join(segmenter.classes).encode()).hexdigest(),
        }

    def decode_size(self, size: tuple[int, int]) -> None:
        """Ask for the whole picture: the reference resizes it from there."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Resize and pad to one input, uint8 (3, H, W), laid out as (H, W, 3)."""
        from cnnbatch.models.resizing import prepare_bytes

        return [replace(prepare_bytes(image.pixels, self._how), original=image.size)]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, Any]:
        """Return of each picture its ``map`` (H, W), ``confidence``, and ``cells`` of its certainty.

        ``batch`` is uint8 (N, 3, H, W), ``sizes`` are (N, 4); see `cnnbatch.models.pixel_network` for them,
        and `cnnbatch.models.pixel_classes.PixelClasses` for the results.
        """
        import torch

        found = self._network(batch, sizes)
        return {
            "map": [one.numbers for one in found],
            "confidence": torch.stack([one.confidence for one in found]),
            "cells": [one.cells for one in found],
        }

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows; maps are of the upright original's size."""
        found = [inner[0] for inner in outputs]
        maps = [_numbers(one["map"]) for one in found]
        columns: list[pa.Array[Any]] = [
            pa.array([self._encoded(one) for one in maps], self._schema.field("map").type),
            self._shares(maps),
            pa.array([float(one["confidence"]) if self._is_scored else None for one in found], pa.float32()),
        ]
        if self._task.uncertain:
            columns.append(self._uncertain(images, [one["cells"].numpy() for one in found]))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _encoded(self, numbers: Numbers) -> Any:
        from cnnbatch.images import class_map

        if self._task.map == "rle":
            return class_map.runs(numbers, len(self._names))
        return class_map.png(numbers)

    def _shares(self, maps: Sequence[Numbers]) -> pa.ListArray[Any]:
        """Return of each map how many pixels each of its classes has, the largest first."""
        import numpy as np

        counts = [np.bincount(one.ravel(), minlength=len(self._names)) for one in maps]
        places = [np.argsort(-one, kind="stable")[: int((one > 0).sum())] for one in counts]
        pixels = np.concatenate([one[at] for one, at in zip(counts, places, strict=True)])
        shares = np.concatenate([one[at] / one.sum() for one, at in zip(counts, places, strict=True)])
        labels = self._names.take(pa.array(np.concatenate(places), pa.int64()))
        fields = list(MAP_CLASSES.value_type)
        structs = pa.StructArray.from_arrays([labels, pa.array(pixels), pa.array(shares)], fields=fields)
        return lists_of(structs, [len(one) for one in places])

    def _uncertain(self, images: Sequence[Image], cells: Sequence[NDArray[np.float32]]) -> pa.Array[Any]:
        from cnnbatch.images.uncertainty import least_certain

        rows = [
            [
                {"score": one.score, "box": dict(zip(("x1", "y1", "x2", "y2"), one.box_xyxy, strict=True))}
                for one in least_certain(inside, image.size, self._task.uncertain)
            ]
            for image, inside in zip(images, cells, strict=True)
        ]
        found: pa.Array[Any] = pa.array(rows, self._schema.field("uncertain").type)
        return found


def _numbers(numbers: torch.Tensor) -> Numbers:
    import numpy as np

    found = numbers.numpy()
    return found if found.dtype == np.uint8 else found.astype(np.uint16)
