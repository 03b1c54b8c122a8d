"""Finds the objects in a picture: a box, a class and a score for each.

A box does not depend on the pictures beside it: each picture's padded shape follows from its own
size, and a batch is of one shape. The price: smaller batches where the pictures' shapes vary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import pyarrow as pa
from pydantic import Field

from cnnbatch.errors import UserError
from cnnbatch.models.trained_files import TrainedColour, TrainedDeviations, TrainedInput, TrainedSize
from cnnbatch.tasks.weighted import Size, WeightedTask, lists_of
from cnnbatch.truth import BOX, KEYPOINT, MASK
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Head, Runtime

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from cnnbatch.config.train import Train
    from cnnbatch.models import Detector
    from cnnbatch.tasks.recipes.recipe import Recipe, TrainingData
    from cnnbatch.tasks.recipes.targets import Details
    from cnnbatch.types import Image, Prepared

Adapter = Literal["torchvision", "yolo", "detr"]

_OBJECT: list[pa.Field[Any]] = [
    pa.field("label", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("box", BOX),
]
_OF_HEADS: Mapping[Head, pa.Field[Any]] = {
    "masks": pa.field("mask", MASK),
    "keypoints": pa.field("keypoints", pa.list_(KEYPOINT)),
}


class DetectorInput(TrainedInput):
    """The fields of `cnnbatch.models.Resizing` that a training may change, the last two by its backbone."""

    size: TrainedSize
    mean: TrainedColour | None = None
    std: TrainedDeviations | None = None


class Detect(WeightedTask):
    """Detection; ``classes`` are given without a background."""

    outside_fingerprint: ClassVar[frozenset[str]] = frozenset({"aliases", "storage"})
    shard_size: ClassVar[int] = 250
    batch: ClassVar[Mapping[str, int]] = {"cuda": 8, "mps": 2, "cpu": 2}
    heads: ClassVar[tuple[Head, ...]] = ()
    """What its objects have beside a box."""
    trained_to: ClassVar[str] = "detect"
    trained_input: ClassVar[type[TrainedInput]] = DetectorInput
    adapters: ClassVar[tuple[str, ...]] = get_args(Adapter)

    name: str = "detect"
    model: str
    """A detector of torchvision, ``yolov3_tiny``, ``onnx`` (with ``adapter``), or
    ``mypackage.module:build``."""
    adapter: Adapter | None = None
    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """The least score of an object; without it, the model's own."""
    max_objects: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many objects of a picture are kept, the best; without it, the model's own number."""
    size: Size | None = None
    """The input's size where not the model's own: (shorter side, longest side) or (height, width)."""
    aliases: dict[str, str | None] = {}
    """Of the truth's classes, the model's name where it differs, or null where the model has none."""

    def columns(self) -> pa.Schema:
        """Return ``objects``: ``label``, ``score`` and ``box`` of each, the best first."""
        fields = [*_OBJECT, *(_OF_HEADS[head] for head in self.heads)]
        return pa.schema([pa.field("objects", pa.list_(pa.struct(fields)))])

    def load(self, runtime: Runtime) -> ObjectDetector:
        """Build the network with its weights on ``runtime.device``."""
        from cnnbatch.models.detectors import build_detector

        choice = self.choice({"size": self.size} if self.size else {})
        return ObjectDetector(self, build_detector(choice, self.heads, self.count_points()), runtime)

    def require_weights(self) -> None:
        """Build the detector, and forget it."""
        from cnnbatch.models.detectors import build_detector

        begun_with = self.model_copy(update={"classes": None})  # A training gives it classes of its own.
        choice = begun_with.choice({"size": self.size} if self.size else {})
        build_detector(choice, self.heads, self.count_points(), head_seed=0)

    def count_points(self) -> int | None:
        """Return how many keypoints an object has; None where there are none, or the weights say it."""
        return None

    def details(self) -> Details:
        """Return what a training learns of objects beside their boxes."""
        from cnnbatch.tasks.recipes.targets import Details

        return Details(self.heads)

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how a detector of torchvision learns the classes of ``data``; UserError for another."""
        from cnnbatch.tasks.recipes.detection import DetectorRecipe

        if self.aliases:
            raise UserError(
                "task.aliases: a training learns the classes by the names in its ground truth\n"
                "  what to do: leave it out, and rename the classes in the ground truth to change them"
            )
        begun_with = self.model_copy(update={"classes": None})  # The job's classes are those to be learned.
        choice = begun_with.choice({"size": self.size} if self.size else {})
        return DetectorRecipe(choice, spec, data, self.details(), self.trained_to)


class ObjectDetector:
    """A detection network on one device; see `cnnbatch.tasks.Model` for its steps."""

    def __init__(self, task: Detect, detector: Detector, runtime: Runtime) -> None:
        from cnnbatch.models.runtime.parts import runnable

        self._task, self._schema = task, task.columns()
        self._device = runtime.device
        self._resizing = detector.resizing_for(runtime)
        for name, value in (("score_threshold", task.score_threshold), ("max_objects", task.max_objects)):
            if value is not None and hasattr(detector.module, name):
                setattr(detector.module, name, value)
        self._run = runnable(detector, runtime)
        self._names = pa.array(detector.classes, pa.string())
        self.licence, self.notes = detector.licence, detector.notes
        self.classes = ModelClasses(detector.classes, detector.ids, detector.aliases)
        self.identity: Mapping[str, str] = {
            "weights": detector.weights,
            "preprocessing": detector.resizing.describe(),
            "library": detector.library,
            "classes": hashlib.sha256("\n".join(detector.classes).encode()).hexdigest(),
        }

    def decode_size(self, size: tuple[int, int]) -> None:
        """Ask for the whole picture: the reference resizes it from there."""

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Resize, normalise and pad to one input, float32 (3, H, W)."""
        from cnnbatch.models.resizing import prepare

        return [prepare(image.pixels, self._resizing)]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, list[Any]]:
        """Return lists of N: ``boxes`` [K, 4] in pixels of the input, ``scores`` [K], ``labels`` [K].

        ``batch`` is float32 (N, 3, H, W), normalised. Raises FloatingPointError where float16 was too
        narrow.
        """
        import torch

        pixels = batch.to(self._device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode():
            found = self._run(pixels, sizes)
        kept = [self._kept(one) for one in found]
        return {name: [_host(one[name]) for one in kept] for name in self._outputs()}

    def _kept(self, found: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return the best detections at or above the job's threshold; a module may have done so itself."""
        scores = found["scores"]
        if not bool(scores.isfinite().all()):
            raise FloatingPointError("scores that are no numbers; use compute.precision=bf16 or fp32")
        kept = (scores >= (self._task.score_threshold or 0)).nonzero()[: self._task.max_objects, 0]
        return {name: value[kept] for name, value in found.items()}

    def _outputs(self) -> list[str]:
        return ["boxes", "scores", "labels", *self._task.heads]

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows, with boxes in pixels of the upright original, clipped to it."""
        import numpy as np

        found = [{name: value.numpy() for name, value in inner[0].items()} for inner in outputs]
        frames = [_Frame(image, inputs[0]) for image, inputs in zip(images, prepared, strict=True)]
        boxes = np.concatenate([frame.boxes(one["boxes"]) for frame, one in zip(frames, found, strict=True)])
        labels = np.concatenate([one["labels"] for one in found])
        arrays: list[pa.Array[Any]] = [
            self._names.take(pa.array(labels)),
            pa.array(np.concatenate([one["scores"] for one in found])),
            pa.StructArray.from_arrays([pa.array(side) for side in boxes.T.copy()], fields=list(BOX)),
        ]
        made = {"masks": _masks, "keypoints": _points}
        arrays += [made[head](frames, found) for head in self._task.heads]
        fields = list(self._schema.field("objects").type.value_type)
        objects = pa.StructArray.from_arrays(arrays, fields=fields)
        lists = lists_of(objects, [len(one["scores"]) for one in found])
        return pa.RecordBatch.from_arrays([lists], schema=self._schema)


def _host(value: torch.Tensor) -> torch.Tensor:
    """Return an output on the CPU, in float32 where it is no whole number."""
    return (value.float() if value.is_floating_point() else value).cpu()


class _Frame:
    """Leads from an input's pixels back to the original's, by torchvision's arithmetic in float32."""

    def __init__(self, image: Image, prepared: Prepared) -> None:
        import numpy as np

        self.size = height, width = image.size
        top, left = prepared.offset
        ratios = [
            np.float32(size) / np.float32(resized)
            for size, resized in zip((width, height), prepared.size[::-1], strict=True)
        ]
        self._ratio = np.array(ratios, np.float32)
        self._offset = np.array([left, top], np.float32)
        self._limit = np.array([width, height], np.float32)

    def boxes(self, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return boxes (K, 4) of the input as boxes of the original, clipped to it."""
        corners = self.unclipped(boxes).reshape(-1, 2, 2)
        return corners.clip(0, self._limit).reshape(-1, 4).astype(float)

    def unclipped(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes (K, 4) of the input as boxes of the original; rounding may take them beyond it."""
        corners: NDArray[np.float32] = (boxes.reshape(-1, 2, 2) - self._offset) * self._ratio
        return corners.reshape(-1, 4)

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return points (K, P, 3) of the input as points of the original; the third value stays."""
        import numpy as np

        return np.concatenate([(points[..., :2] - self._offset) * self._ratio, points[..., 2:]], axis=-1)


Found = Mapping[str, "NDArray[Any]"]
"""The outputs of one input, by their names."""


def _masks(frames: Sequence[_Frame], found: Sequence[Found]) -> pa.Array[Any]:
    """Return the masks (K, 1, M, M) of several pictures as run lengths at the originals' sizes."""
    from cnnbatch.images.pasted_masks import pasted

    masks: list[dict[str, Any]] = []
    for frame, one in zip(frames, found, strict=True):
        masks += pasted(one["masks"][:, 0], frame.unclipped(one["boxes"]), frame.size)
    return pa.array(masks, MASK)


def _points(frames: Sequence[_Frame], found: Sequence[Found]) -> pa.Array[Any]:
    """Return the points (K, P, 3) of several pictures as K lists of P."""
    import numpy as np

    points = [frame.points(one["keypoints"]) for frame, one in zip(frames, found, strict=True)]
    flat = np.concatenate([one.reshape(-1, 3) for one in points])
    columns: list[pa.Array[Any]] = [
        pa.array(flat[:, 0].astype(float)),
        pa.array(flat[:, 1].astype(float)),
        pa.array(flat[:, 2].astype(np.float32)),
    ]
    structs = pa.StructArray.from_arrays(columns, fields=list(KEYPOINT))
    return lists_of(structs, [count for one in points for count in [one.shape[1]] * len(one)])
