"""Says which class a picture shows, with the probabilities of the best few.

All probabilities leave the device with every batch, four bytes a class, so that the true class's can
be looked up wherever the input turns out to have one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cnnbatch.models.trained_files import TrainedInput, TrainedSide, TrainedSize
from cnnbatch.tasks.weighted import Names, Side, Size, WeightedTask, lists_of
from cnnbatch.truth.classes import ModelClasses
from cnnbatch.types import Runtime

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from cnnbatch.config.train import Train
    from cnnbatch.models import Network
    from cnnbatch.models.depth import Tap
    from cnnbatch.tasks.recipes.recipe import Recipe, TrainingData
    from cnnbatch.types import Image, Prepared

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(allow_inf_nan=False)]

_BEST: list[pa.Field[Any]] = [pa.field("label", pa.string()), pa.field("score", pa.float32())]
_VECTOR = pa.list_(pa.float32())
_COLUMNS: dict[str, pa.DataType] = {
    "label": pa.string(),
    "score": pa.float32(),
    "top": pa.list_(pa.struct(_BEST)),
    "true_score": pa.float32(),
}


class InputChange(BaseModel):
    """What to do otherwise than the weights ask for; sizes are (height, width), an int is a square."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Side | Size | None = None
    crop: Side | Size | None = None
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic"] | None = None
    mean: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)] | None = None
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] | None = None
    fit: Literal["cover", "contain", "squash"] | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that were set, as `cnnbatch.models.Preprocessing` has them."""
        found = {name: value for name, value in self if value is not None}
        if isinstance(self.crop, int):
            found["crop"] = (self.crop, self.crop)
        return found


class ClassifierInput(TrainedInput):
    """The fields of `cnnbatch.models.Preprocessing`."""

    resize: TrainedSide | TrainedSize
    crop: TrainedSize
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic"]
    mean: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)]
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
    fit: Literal["cover", "contain", "squash"]


class Classify(WeightedTask):
    """Classification; see `cnnbatch.models.Choice` for the model and its weights."""

    trained_to: ClassVar[str] = "classify"
    trained_input: ClassVar[type[TrainedInput]] = ClassifierInput
    adapters: ClassVar[tuple[str, ...]] = ("classify",)
    prepares_on_device: ClassVar[bool] = True

    name: str = "classify"
    model: str
    """A classifier of torchvision, ``timm/NAME``, ``keras/NAME``, ``efficientnet_lite0``, ``onnx`` (see
    ``adapter``), or ``mypackage.module:build``."""
    adapter: Literal["classify"] | None = None
    preprocessing: InputChange = InputChange()
    """What to do otherwise than the weights ask for."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """The number of classes in ``top``."""
    probabilities: bool = False
    """Write the probabilities of all classes."""
    embedding: bool | Names = False
    """Write what goes into the last layer; or by their paths some blocks, whose outputs are averaged over
    their area and joined."""

    @model_validator(mode="after")
    def _onnx_gives_no_embedding(self) -> Self:
        if self.embedding and self.model == "onnx":
            raise ValueError("an ONNX file gives its outputs only; expected embedding to be left out")
        return self

    def columns(self) -> pa.Schema:
        """Return ``label``, ``score``, ``top``, ``true_score``, and what else was asked for."""
        columns = [*_COLUMNS.items(), *((name, _VECTOR) for name in self.vectors())]
        return pa.schema([pa.field(name, kind) for name, kind in columns])

    def vectors(self) -> list[str]:
        """Return the columns of vectors that were asked for."""
        wanted = {"probabilities": self.probabilities, "embedding": bool(self.embedding)}
        return [name for name, asked in wanted.items() if asked]

    def load(self, runtime: Runtime) -> Classifier:
        """Build the network with its weights on ``runtime.device``."""
        from cnnbatch.models import build_classifier

        return Classifier(self, build_classifier(self.choice(self.preprocessing.fields())), runtime)

    def require_weights(self) -> None:
        """Build the network, and forget it."""
        from cnnbatch.models import build_classifier

        begun_with = self.model_copy(update={"classes": None})  # A training gives it classes of its own.
        build_classifier(begun_with.choice(self.preprocessing.fields()))

    def with_features(self, most: int) -> tuple[Classify, Sequence[Tap]]:
        """Return the task with what goes into its last layer, or with the blocks after which it can be cut.

        There are none of a network that is cut already, or that can't be; see `cnnbatch.models.depth`.
        """
        taps = self._taps(most)
        embedding = tuple(one.block for one in taps) or True
        return self.model_copy(update={"embedding": embedding, "classes": None, "top_k": 1}), taps

    def _taps(self, most: int) -> Sequence[Tap]:
        from cnnbatch.models import build_classifier
        from cnnbatch.models.depth import can_be_cut, taps

        choice = self.choice(self.preprocessing.fields())
        if choice.features is not None:
            return []
        network = build_classifier(choice)
        found = taps(network, most)
        return found if found and can_be_cut(network, found[0].block) else []

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how the network learns the classes of ``data``."""
        from cnnbatch.tasks.recipes.classification import ClassifierRecipe

        begun_with = self.model_copy(update={"classes": None})  # The job's classes are those to be learned.
        return ClassifierRecipe(begun_with.choice(self.preprocessing.fields()), spec, data)


def _with_features(network: Network, task: Classify) -> nn.Module:
    """Return the network's module, which also gives what the task asks for."""
    from cnnbatch.models.depth import WithDepths, tap
    from cnnbatch.models.network import WithPenultimate

    if isinstance(task.embedding, tuple):
        taps = [tap(network, block, "task.embedding") for block in task.embedding]
        return WithDepths(network.module, taps)
    return WithPenultimate(network.module) if task.embedding else network.module


class Classifier:
    """A classification network on one device; see `cnnbatch.tasks.Model` for its steps."""

    def __init__(self, task: Classify, network: Network, runtime: Runtime) -> None:
        from cnnbatch.models.network import check
        from cnnbatch.models.preprocessing import Normalize
        from cnnbatch.models.runtime.backends import executable, noise

        self._task, self._schema = task, task.columns()
        self._how = network.preprocessing
        self._run = executable(_with_features(network, task), noise(self._how.crop), runtime)
        self._normalize = Normalize(self._how, runtime.device, self._run.dtype)
        self._names = pa.array(network.classes, pa.string())
        self._numbers = {name: number for number, name in enumerate(network.classes)}
        self._may_overflow = runtime.precision == "fp16"
        self.licence, self.notes = network.licence, network.notes
        self.classes = ModelClasses(network.classes)
        self.identity: Mapping[str, str] = {
            "weights": network.weights,
            "preprocessing": self._how.describe(),
            "library": network.library,
            "classes": hashlib.sha256("\n".join(network.classes).encode()).hexdigest(),
        }
        check(lambda batch: self._outputs(batch)[0], self._how.crop, len(network.classes), task.model)

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the size that the picture is resized to, where that is smaller."""
        return self._how.decode_size(size)

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Resize and crop to one input, uint8 (3, *crop), laid out as (H, W, 3)."""
        from cnnbatch.models.preprocessing import prepare

        return [prepare(image.pixels, image.size, self._how)]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``probabilities`` (N, C), the best ``scores``, ``indices`` (N, k), and ``embedding`` (N, D).

        ``batch`` is uint8 (N, 3, H, W); results are float32, ``indices`` int64. Raises
        FloatingPointError where float16 was too narrow.
        """
        logits, *features = self._outputs(batch)
        if self._may_overflow and not logits.isfinite().all():  # the others cannot, and the question waits
            raise FloatingPointError("outputs overflow float16; use compute.precision=bf16 or fp32")
        probabilities = logits.softmax(1)
        scores, indices = probabilities.topk(min(self._task.top_k, len(self._names)))
        outputs = {"probabilities": probabilities, "scores": scores, "indices": indices}
        return {**outputs, "embedding": features[0]} if features else outputs

    def _outputs(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the logits and, where they are asked for, the features, in float32."""
        import torch

        with torch.inference_mode():
            found = self._run(self._normalize(batch))
            return [one.float() for one in (found if isinstance(found, tuple) else (found,))]

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows; the truth's ``label`` is looked up by its name among the classes."""
        items = [inner[0] for inner in outputs]
        scores, indices = _stacked(items, "scores"), _stacked(items, "indices")
        columns: list[pa.Array[Any]] = [
            self._labels(indices[:, 0]),
            pa.array(scores[:, 0]),
            self._top(scores, indices),
            self._true_scores(images, items),
        ]
        for vectors in (_stacked(items, name) for name in self._task.vectors()):
            columns.append(lists_of(pa.array(vectors.ravel()), [vectors.shape[1]] * len(vectors)))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _labels(self, indices: NDArray[np.int64]) -> pa.Array[Any]:
        return self._names.take(pa.array(indices, pa.int64()))

    def _top(self, scores: NDArray[np.float32], indices: NDArray[np.int64]) -> pa.ListArray[Any]:
        best = [self._labels(indices.ravel()), pa.array(scores.ravel())]
        structs = pa.StructArray.from_arrays(best, fields=_BEST)
        return lists_of(structs, [scores.shape[1]] * len(scores))

    def _true_scores(
        self, images: Sequence[Image], items: Sequence[Mapping[str, torch.Tensor]]
    ) -> pa.Array[Any]:
        numbers = [self._numbers.get((image.truth or {}).get("label") or "") for image in images]
        values = [
            None if number is None else float(item["probabilities"][number])
            for number, item in zip(numbers, items, strict=True)
        ]
        return pa.array(values, pa.float32())


def _stacked(items: Sequence[Mapping[str, torch.Tensor]], name: str) -> NDArray[Any]:
    """Return one output of all images as an array of first dimension N."""
    import torch

    array: NDArray[Any] = torch.stack([item[name] for item in items]).cpu().numpy()
    return array
