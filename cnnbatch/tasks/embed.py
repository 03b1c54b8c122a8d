"""Gives a vector to a picture, near to those of pictures of the same class: of a person, or of a product.

What it is trained on need not have the classes that it is used for; so it is judged by others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from cnnbatch.output.embeddings import EmbeddingSpace, Metric, Normalisation
from cnnbatch.tasks.classify import ClassifierInput, InputChange
from cnnbatch.tasks.weighted import WeightedTask
from cnnbatch.types import Runtime

if TYPE_CHECKING:
    import torch

    from cnnbatch.config.train import Train
    from cnnbatch.models.embedding_network import EmbeddingNetwork
    from cnnbatch.models.trained_files import TrainedInput
    from cnnbatch.tasks.recipes.recipe import Recipe, TrainingData
    from cnnbatch.types import Image, Prepared

Dimensions = Annotated[int, Field(ge=2, le=65_536)]
Template = Literal["arcface", "dlib", "facenet"]


class EmbeddingInput(ClassifierInput):
    """The fields of `cnnbatch.models.Preprocessing`, and what an embedding is beside its network."""

    dimensions: Dimensions
    root: bool
    normalisation: Normalisation
    metric: Metric
    template: Template | None


class Embed(WeightedTask):
    """A vector a picture: the features of a classifier, and a head that is trained on them."""

    trained_to: ClassVar[str] = "embed"
    trained_input: ClassVar[type[TrainedInput]] = EmbeddingInput
    prepares_on_device: ClassVar[bool] = True
    learns_new_classes: ClassVar[bool] = True

    name: str = "embed"
    model: str
    """A classifier of torchvision, ``timm/NAME``, ``eigenfaces``, ``fisherfaces`` or ``lbp``, or a folder
    that ``train_faces`` has written."""
    preprocessing: InputChange = InputChange()
    """What to do otherwise than the weights ask for."""
    features: Annotated[str, Field(min_length=1)] | None = None
    """The block whose output the head reads, averaged over its area; without it, the classifier's last."""
    dimensions: Dimensions | None = None
    """How many numbers an embedding has; without it, as many as the block gives."""
    root: bool | None = None
    """Read the square roots of the features, so that a few large ones do not decide alone."""
    normalisation: Normalisation | None = None
    """Whether embeddings are divided by their Euclidean length (``l2``, the default)."""
    metric: Metric | None = None
    """By which distance embeddings are compared; ``euclidean`` by default."""
    template: Template | None = None
    """Of faces: by which convention they were aligned, so that the job ``faces`` can take what is trained."""

    def columns(self) -> pa.Schema:
        """Return ``embedding``; what only the loaded network knows is in the columns of the model."""
        return pa.schema([pa.field("embedding", pa.list_(pa.float32()))])

    def load(self, runtime: Runtime) -> PictureEmbedder:
        """Build the network with its weights on ``runtime.device``."""
        return PictureEmbedder(self, self._network(), runtime)

    def require_weights(self) -> None:
        """Build the network, and forget it."""
        self._network()

    def recipe(self, spec: Train, data: TrainingData) -> Recipe:
        """Return how the network learns to tell the classes of ``data`` apart."""
        from cnnbatch.tasks.recipes.embedding import EmbeddingRecipe

        random = f"random:{spec.seed}" if spec.strategy == "scratch" else None
        chosen = self if random is None else self.model_copy(update={"weights": random, "sha256": None})
        network = chosen._network(spec.seed)
        return EmbeddingRecipe(network, chosen._choice().model, spec, data)

    def _choice(self) -> Any:
        fields = ("features", "dimensions", "root", "normalisation", "metric", "template")
        form = {name: value for name in fields if (value := getattr(self, name)) is not None}
        return self.choice({**self.preprocessing.fields(), **form})

    def _network(self, seed: int = 0) -> EmbeddingNetwork:
        from dataclasses import replace

        from cnnbatch.models.embedding_network import build_embedding, parted

        choice = self._choice()
        trained = (choice.model, choice.weights) != (self.model, self.weights)
        preprocessing, how = parted(choice)
        return build_embedding(replace(choice, preprocessing=preprocessing), how, trained, seed)


class PictureEmbedder:
    """An embedding network on one device; see `cnnbatch.tasks.Model` for the steps."""

    def __init__(self, task: Embed, network: EmbeddingNetwork, runtime: Runtime) -> None:
        from cnnbatch.models.network import check
        from cnnbatch.models.preprocessing import Normalize
        from cnnbatch.models.runtime.backends import executable, noise

        self._how, self._form = network.preprocessing, network.form
        self._run = executable(network.module, noise(self._how.crop), runtime)
        self._normalize = Normalize(self._how, runtime.device, self._run.dtype)
        self._may_overflow = runtime.precision == "fp16"
        space = EmbeddingSpace(
            task.model, network.weights, network.dimensions, self._form.normalisation, self._form.metric
        )
        self.columns = pa.schema([space.field()])
        self.classes = None
        self.licence, self.notes = network.licence, network.notes
        self.identity: Mapping[str, str] = {
            "weights": network.weights,
            "preprocessing": self._how.describe(),
            "form": repr(self._form),
            "library": network.library,
        }
        check(self._embeddings, self._how.crop, network.dimensions, task.model)

    def decode_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the size that the picture is resized to, where that is smaller."""
        return self._how.decode_size(size)

    def prepare(self, image: Image) -> Sequence[Prepared]:
        """Resize and crop to one input, uint8 (3, *crop), laid out as (H, W, 3)."""
        from cnnbatch.models.preprocessing import prepare

        return [prepare(image.pixels, image.size, self._how)]

    def forward(self, batch: torch.Tensor, sizes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``embedding`` (N, D), float32, of uint8 (N, 3, H, W).

        Raises FloatingPointError where float16 was too narrow.
        """
        vectors = self._embeddings(batch)
        if self._may_overflow and not vectors.isfinite().all():
            raise FloatingPointError("outputs overflow float16; use compute.precision=bf16 or fp32")
        return {"embedding": vectors}

    def _embeddings(self, batch: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            vectors: torch.Tensor = self._run(self._normalize(batch)).float()
        return functional.normalize(vectors, dim=1) if self._form.normalisation == "l2" else vectors

    def rows(
        self,
        images: Sequence[Image],
        prepared: Sequence[Sequence[Prepared]],
        outputs: Sequence[Sequence[Any]],
    ) -> pa.RecordBatch:
        """Build the rows."""
        import torch

        vectors = torch.stack([inner[0]["embedding"] for inner in outputs]).cpu().numpy()
        flat: Any = pa.array(vectors.ravel(), pa.float32())
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return pa.RecordBatch.from_arrays([column], schema=self.columns)
